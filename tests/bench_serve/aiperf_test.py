#!/usr/bin/env python3
"""NVIDIA's aiperf, unmodified from PyPI, against a real coordinator and worker group: every request must succeed.

aiperf is 1.2 GB with what it needs, so it has an environment of its own, which only `aiperf_test.py --install` makes (about a
minute). Without it the test ends with 77, skipped.
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "integration"))
import cluster

ENVIRONMENT = cluster.ROOT / "build/aiperf"
REQUESTS = 24


def install():
    subprocess.run(["/usr/bin/python3", "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
    subprocess.run([str(ENVIRONMENT / "bin/pip"), "install", "--quiet", "--disable-pip-version-check", "-r",
                    str(HERE / "aiperf/requirements.txt")], check=True)


def profile(service, folder, endpoint):
    """aiperf's own summary of a run."""
    out = pathlib.Path(folder) / endpoint
    run = subprocess.run(
        [str(ENVIRONMENT / "bin/aiperf"), "profile", "--model", service.model_name(), "--tokenizer", str(cluster.DEMO),
         "--endpoint-type", endpoint, "--streaming", "--url", service.base, "--synthetic-input-tokens-mean", "40",
         "--synthetic-input-tokens-stddev", "0", "--output-tokens-mean", "32", "--output-tokens-stddev", "0",
         "--request-count", str(REQUESTS), "--concurrency", "4", "--random-seed", "1", "--ui", "none", "--artifact-dir", str(out)],
        capture_output=True, text=True, timeout=150, cwd=folder,
        env={**os.environ, "AIPERF_GPU_TELEMETRY_ENABLED": "false"})
    report = out / "profile_export_aiperf.json"
    if run.returncode != 0 or not report.exists():
        raise AssertionError(f"aiperf ended with {run.returncode}\n{run.stdout[-3000:]}\n{run.stderr[-3000:]}")
    return json.loads(report.read_text())


def check(summary, endpoint):
    figures = {name: summary[name]["avg"] for name in ("request_count", "request_error_rate", "time_to_first_token",
                                                       "request_latency", "output_token_throughput", "usage_prompt_tokens",
                                                       "usage_completion_tokens")}
    print(endpoint, ", ".join(f"{name} {value:.2f}" for name, value in figures.items()), flush=True)
    assert summary["error_summary"] == [], summary["error_summary"]
    assert figures["request_count"] == REQUESTS, figures
    assert figures["request_error_rate"] == 0, figures
    assert 0 < figures["time_to_first_token"] <= figures["request_latency"], figures
    assert figures["usage_prompt_tokens"] >= 40 and figures["usage_completion_tokens"] > 0, figures


def main():
    if "--install" in sys.argv[1:]:
        try:
            install()
        except subprocess.CalledProcessError as error:
            print(f"skipped: aiperf cannot be installed: {error}")
            return 77
    if not (ENVIRONMENT / "bin/aiperf").exists():
        print(f"skipped: no aiperf in {ENVIRONMENT}; tests/bench_serve/aiperf_test.py --install puts it there (1.2 GB)")
        return 77
    with cluster.Cluster(ranks=1) as service, tempfile.TemporaryDirectory() as folder:
        for endpoint in ("chat", "completions"):
            check(profile(service, folder, endpoint), endpoint)
    return 0


if __name__ == "__main__":
    sys.exit(main())
