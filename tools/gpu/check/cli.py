"""Chooses programs and stages, runs the stages one after another, and writes down what they found."""
import argparse
import json
import pathlib
import sys
import time

from . import device, pack, report, stages
from .runner import Runner

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_NO_GPU = 0, 1, 2, 3


def parse(arguments, description):
    parser = argparse.ArgumentParser(prog="gpu_check", description=description,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=pathlib.Path, metavar="DIR", help="build, and write a folder that runs alone")
    parser.add_argument("--stages", default=",".join(stages.DEFAULT),
                        help=f"of {', '.join(stages.ALL)}; default: %(default)s")
    parser.add_argument("--shards", type=int, default=4,
                        help="processes that share the cases of a test program; default %(default)s")
    parser.add_argument("--sanitize", action="store_true", help="also compute-sanitizer: memcheck, racecheck")
    parser.add_argument("--sanitize-seconds", type=float, default=150, help="for each of its tools; default %(default)s")
    parser.add_argument("--time-limit", type=float, default=0, help="seconds for all stages together; 0: none")
    parser.add_argument("--cases", default="", help="benchmark cases whose names begin so, separated by commas")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each benchmark case; default %(default)s")
    parser.add_argument("--breakdown", action="store_true", help="also say which operations a step spends its time on")
    parser.add_argument("--golden", type=pathlib.Path, help="directory of recorded numbers; default: the carried one")
    parser.add_argument("--out", type=pathlib.Path, help="default: gpu-check-DATE here")
    parser.add_argument("--programs", type=pathlib.Path, help=argparse.SUPPRESS)  # A folder with manifest.json: for tests.
    parser.add_argument("--toy", action="store_true", help=argparse.SUPPRESS)  # Tiny cases and no look at the device.
    options = parser.parse_args(arguments)
    options.wanted = options.stages.split(",") + (["sanitize"] if options.sanitize else [])
    if options.shards < 1:
        parser.error(f"--shards {options.shards}: at least 1")
    unknown = [name for name in options.wanted if name not in stages.ALL]
    if unknown:
        parser.error(f"unknown stage '{unknown[0]}': {', '.join(stages.ALL)}")
    return options


def programs_of(here, options):
    """(folder, manifest): carried beside this script, named by --programs, or built from the sources around it."""
    for folder in (options.programs, here):
        if folder and (folder / "manifest.json").is_file():
            pack.unpack(folder)
            return folder, json.loads((folder / "manifest.json").read_text())
    root = here.parent
    build = pack.build(root, root / "build/cuda", portable=False)
    return build, pack.manifest_of(root, build)


def run_stages(options, runner, context):
    results = []
    wanted = [name for name in stages.ALL if name in options.wanted]
    for number, name in enumerate(wanted, 1):
        runner.say(f"[{number}/{len(wanted)}] {name}")
        began = time.monotonic()
        try:
            result = stages.RUN[name](runner, context)
        except Exception as error:  # A stage must not take the others with it.
            result = {"verdict": "failed", "summary": f"{type(error).__name__}: {error}"}
        result.update(stage=name, seconds=round(time.monotonic() - began, 1))
        runner.say(f"    {result['verdict']}: {result['summary']} [{result['seconds']:.0f}s]")
        results.append(result)
        context.results = results
        report.write(context.out, context.facts, results)  # What is there survives if the next stage is cut off.
    return results


def main(here, description, arguments=None):
    options = parse(arguments, description)
    if options.pack:
        return pack.write(here.parent, options.pack)
    found = {"name": "none: toy sizes"} if options.toy else device.look()
    if isinstance(found, str):
        print(f"gpu_check: {found}; nothing was run", file=sys.stderr)
        return EXIT_NO_GPU
    try:
        folder, manifest = programs_of(here, options)
    except pack.BuildFailed as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return EXIT_FAILED
    date = time.strftime("%Y-%m-%d")
    out = options.out or pathlib.Path(f"gpu-check-{date}")
    out.mkdir(parents=True, exist_ok=True)
    facts = {"date": date, "commit": manifest["commit"], "command": " ".join(["gpu_check", *(arguments or sys.argv[1:])]),
             "device": found}
    runner = Runner(out / "log.txt", options.time_limit)
    context = stages.Context(options=options, folder=folder, manifest=manifest, out=out, facts=facts,
                             environment=device.environment(options.golden or folder / "golden", folder / "lib"))
    results = run_stages(options, runner, context)
    print(report.text(facts, results))
    failed = [result["stage"] for result in results if result["verdict"] == "failed"]
    runner.say(f"written to {out}; " + (f"failed: {', '.join(failed)}" if failed else "all stages passed"))
    return EXIT_FAILED if failed else EXIT_OK
