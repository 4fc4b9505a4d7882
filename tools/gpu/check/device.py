"""What the machine has. Only reads."""
import ctypes
import glob
import os
import shutil
import subprocess
import sys

NEEDED_CAPABILITY = (9, 0)
LIBRARIES = ("libcublasLt.so.13", "libnccl.so.2")


def query_smi():
    """Facts that only nvidia-smi has; {} where it is missing or refuses."""
    if not shutil.which("nvidia-smi"):
        return {}
    fields = ["driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "clocks.max.mem", "power.limit",
              "temperature.gpu"]
    done = subprocess.run(["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader", "--id=0"],
                          capture_output=True, text=True, timeout=60)
    values = [value.strip() for value in done.stdout.splitlines()[0].split(",")] if done.stdout.strip() else []
    return dict(zip(fields, values)) if done.returncode == 0 else {}


def look():
    """Facts about the first device, or one line that says why there is none to use."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no GPU: libcuda.so.1, the NVIDIA driver, is not installed"
    if code := driver.cuInit(0):
        return f"no GPU: the driver does not start (cuInit returned {code})"
    count = ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    if count.value == 0:
        return "no GPU: the driver finds no device"
    name, total, version = ctypes.create_string_buffer(256), ctypes.c_size_t(), ctypes.c_int()
    driver.cuDeviceGetName(name, 256, 0)
    driver.cuDeviceTotalMem_v2(ctypes.byref(total), 0)
    driver.cuDriverGetVersion(ctypes.byref(version))

    def attribute(number):
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), number, 0)
        return value.value

    capability = (attribute(75), attribute(76))
    if capability != NEEDED_CAPABILITY:
        return (f"no usable GPU: {name.value.decode()} has compute capability {capability[0]}.{capability[1]}, "
                f"the kernels are built for {NEEDED_CAPABILITY[0]}.{NEEDED_CAPABILITY[1]} (H100, H200)")
    return {"name": name.value.decode(), "multiprocessors": attribute(16), "memory_mib": total.value >> 20,
            "l2_mib": attribute(38) >> 20, "devices": count.value,
            "cuda_of_driver": f"{version.value // 1000}.{version.value % 1000 // 10}", **query_smi()}


def library_folders():
    """Folders that hold CUDA's libraries, of the toolkit or of Python's packages, where the loader may not look."""
    candidates = ["/usr/local/cuda/lib64", "/usr/local/cuda/targets/x86_64-linux/lib",
                  *sorted(glob.glob("/usr/local/cuda-13*/lib64"))]
    pythons = {sys.executable, shutil.which("python3") or sys.executable}
    for python in pythons:
        try:
            done = subprocess.run([python, "-c", "import sys; print(*sys.path, sep='\\n')"], capture_output=True, text=True,
                                  timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            continue
        for path in done.stdout.split():
            candidates += sorted(glob.glob(f"{path}/nvidia/*/lib"))
    return [folder for folder in dict.fromkeys(candidates)
            if any(os.path.exists(os.path.join(folder, library)) for library in LIBRARIES)]


def environment(golden, carried):
    """What the programs are run with. carried: a folder of libraries."""
    variables = dict(os.environ)
    folders = library_folders() + ([str(carried.resolve())] if carried.is_dir() else [])
    folders += [part for part in variables.get("LD_LIBRARY_PATH", "").split(":") if part]
    if folders:
        variables["LD_LIBRARY_PATH"] = ":".join(folders)
    if golden.is_dir():
        variables["QUICKSILVER_GOLDEN"] = str(golden.resolve())
    return variables
