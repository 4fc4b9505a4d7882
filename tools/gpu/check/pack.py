"""Builds the programs of gpu_check, and makes a folder of them that runs alone."""
import json
import lzma
import os
import pathlib
import shutil
import subprocess
import sys

PACK_MIB_MAX = 60
SYSTEM_LIBRARIES = {"libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2"}
# gloo has no archive. It comes along, with what it needs besides the C++ runtime, for the one test that uses it.
CARRIED_LIBRARIES = {"libgloo.so.0", "libhiredis.so.0.14", "libibverbs.so.1", "libnl-3.so.200", "libnl-route-3.so.200"}
CONFORMANCE = "gpu_kernels_test"
# Families whose recordings the engine does not read yet need not travel.
GOLDEN_FAMILIES = ("llada", "sdar")


class BuildFailed(Exception):
    pass


def build(root, folder, portable):
    """Configures and builds; returns the folder. Says how far it is."""
    if not (root / "CMakeLists.txt").is_file():
        raise BuildFailed(f"neither manifest.json beside this program nor sources in {root}")
    configure = ["cmake", "-S", root, "-B", folder, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DQUICKSILVER_CUDA=ON",
                 f"-DQUICKSILVER_PORTABLE={'ON' if portable else 'OFF'}"]
    environment = {**os.environ, "CCACHE_BASEDIR": str(root), "CCACHE_NOHASHDIR": "1"}
    for what, command in (("configuring", configure),
                          ("building: the first time takes minutes", ["cmake", "--build", folder, "--target", "gpu_programs"])):
        print(f"==> {what}", file=sys.stderr, flush=True)
        try:
            # The build shows its own progress; what CMake finds is only of interest when it fails.
            quiet = command is configure
            done = subprocess.run([str(part) for part in command], env=environment, text=True,
                                  stdout=subprocess.PIPE if quiet else sys.stderr, stderr=subprocess.STDOUT if quiet else None)
        except FileNotFoundError:
            raise BuildFailed(f"{command[0]} is not installed") from None
        if done.returncode:
            lines = (done.stdout or "").splitlines()
            cause = next((i for i, line in enumerate(lines) if "CMake Error" in line), max(0, len(lines) - 6))
            detail = " ".join(line.strip() for line in lines[cause:cause + 6] if line.strip())
            raise BuildFailed(f"{what.split(':')[0]} failed. {detail}\nBuilding needs what tools/install_dependencies installs; "
                              "where that cannot be, carry the folder that tools/gpu_check --pack DIR makes elsewhere")
    return folder


def programs_of(folder):
    """[(kind, path)] of what was built."""
    lines = (folder / "gpu_programs.txt").read_text().split("\n")
    return [tuple(line.split(" ", 1)) for line in lines if line]


def commit_of(root):
    def git(*arguments):
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True).stdout.strip()

    commit = git("rev-parse", "--short=12", "HEAD") or "unknown"
    return commit + (" with changes" if git("status", "--porcelain", "--untracked-files=no") else "")


def manifest_of(root, folder):
    """What stages.py reads: paths are relative to `folder`."""
    programs = programs_of(folder)

    def path(name):
        return next(os.path.relpath(path, folder) for _, path in programs if pathlib.Path(path).name == name)

    tests = [{"name": pathlib.Path(test).name, "program": os.path.relpath(test, folder), "limit_s": 300}
             for kind, test in programs if kind == "test"]
    return {"commit": commit_of(root), "tests": tests, "conformance": CONFORMANCE, "bench": path("bench_gpu"),
            "collectives": path("ipc_benchmark"), "torch": os.path.relpath(root / "tools/gpu/bench_torch.py", folder)}


def needed(program):
    """The shared libraries that the loader must find."""
    out = subprocess.run(["readelf", "-d", str(program)], check=True, capture_output=True, text=True).stdout
    return {line.split("[")[1].split("]")[0] for line in out.splitlines() if "(NEEDED)" in line}


def copy_libraries(program, target):
    """Copies what the program and its libraries need of CARRIED_LIBRARIES."""
    out = subprocess.run(["ldd", str(program)], check=True, capture_output=True, text=True).stdout
    for line in out.splitlines():
        name, arrow, path, *_ = [*line.split(), "", "", ""]
        if arrow == "=>" and name in CARRIED_LIBRARIES:
            target.mkdir(exist_ok=True)
            shutil.copy2(path, target / name)


def copy_golden(source, target):
    """The recordings, with the checkpoints of the families that we run."""
    target.mkdir()
    for name in ("README.md", "manifest.json"):
        shutil.copy2(source / name, target / name)
    for name in ("forward", "traces"):
        shutil.copytree(source / name, target / name)
    for folder in sorted((source / "checkpoints").iterdir()):
        if folder.name.split("-")[0] in GOLDEN_FAMILIES:
            shutil.copytree(folder, target / "checkpoints" / folder.name)


def write(root, target):
    """Builds portable programs and makes `target` of them. Returns the exit code."""
    if target.exists() and any(target.iterdir()) and not (target / "manifest.json").is_file():
        print(f"gpu_check: {target} is not empty, and no folder that --pack wrote", file=sys.stderr)
        return 2
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        fill(root, build(root, root / "build/portable", portable=True), part)
        compress(part)
        size = mebibytes(part)
        if size > PACK_MIB_MAX:
            raise BuildFailed(f"the folder has more than {PACK_MIB_MAX} MiB")
    except BuildFailed as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return 1
    if target.exists():
        shutil.rmtree(target)
    part.rename(target)
    print(f"{size:6.1f} MiB  in all; run {target}/gpu_check")
    return 0


def fill(root, folder, target):
    (target / "bin").mkdir(parents=True)
    for _, program in programs_of(folder):
        packed = target / "bin" / pathlib.Path(program).name
        subprocess.run(["strip", "-o", str(packed), program], check=True)
        copy_libraries(program, target / "lib")
        if foreign := needed(packed) - SYSTEM_LIBRARIES - CARRIED_LIBRARIES:
            raise BuildFailed(f"{packed.name} needs {', '.join(sorted(foreign))}, which a bare machine lacks")
    manifest = manifest_of(root, folder)
    for test in manifest["tests"]:
        test["program"] = f"bin/{test['name']}"
    manifest.update(bench="bin/bench_gpu", collectives="bin/ipc_benchmark", torch="gpu/bench_torch.py")
    (target / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    shutil.copy2(root / "tools/gpu_check", target / "gpu_check")
    shutil.copytree(root / "tools/gpu/check", target / "gpu/check", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(root / "tools/gpu/bench_torch.py", target / "gpu/bench_torch.py")
    golden = pathlib.Path(os.environ.get("QUICKSILVER_GOLDEN", root / "../shared/golden"))
    if (golden / "manifest.json").is_file():
        copy_golden(golden, target / "golden")
    else:
        print(f"without golden recordings: {golden} has none")


def compress(target):
    """Programs and libraries wait compressed for unpack(). Prints their sizes."""
    for path in sorted([*(target / "bin").iterdir(), *(target / "lib").glob("*")]):
        packed = path.with_name(path.name + ".xz")
        packed.write_bytes(lzma.compress(path.read_bytes()))
        print(f"{path.stat().st_size / 2**20:6.1f} MiB, packed {packed.stat().st_size / 2**20:4.1f}  {path.name}", flush=True)
        path.unlink()


def unpack(folder):
    """Puts beside each compressed program of a carried folder what is in it."""
    for packed in [*folder.glob("bin/*.xz"), *folder.glob("lib/*.xz")]:
        path = packed.with_suffix("")
        if not path.exists() or path.stat().st_mtime < packed.stat().st_mtime:
            path.write_bytes(lzma.decompress(packed.read_bytes()))
            path.chmod(0o755)


def mebibytes(target):
    return sum(path.stat().st_size for path in target.rglob("*") if path.is_file()) / 2**20
