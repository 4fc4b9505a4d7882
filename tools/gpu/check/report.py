"""The table, from what the stages found. Pure but for write()."""
import json

FP8_SPEEDUP_MIN = 1.75
# Our case against the same forward in PyTorch: how much faster it should be.
TORCH_SPEEDUP_MIN = {"llada8b_bf16_1x32": 1.3, "llada8b_bf16_64x32": 1.0, "sdar1.7b_bf16_1x4": 1.3, "sdar8b_bf16_1x4": 1.3}


def stage(results, name):
    return next((result for result in results if result["stage"] == name), {})


def rows_of(results, *kinds):
    rows = stage(results, "bench").get("rows", []) + stage(results, "torch").get("rows", [])
    return [row for row in rows if row["kind"] in kinds]


def comparisons(results):
    """Rows against rows: [what, ratio, aim or ""]."""
    ours = {row["case"]: row["measured_us"] for row in rows_of(results, "step")}
    found = []

    def compare(what, slow, fast, least=None):
        if slow and fast:
            found.append({"what": what, "ratio": slow / fast, "aim": f">= {least:.2f}" if least else "",
                          **({"met": slow / fast >= least} if least else {})})

    for size, least in (("1x32", FP8_SPEEDUP_MIN), ("64x32", None)):
        compare(f"LLaDA-8B {size}: FP8 layers against bf16", ours.get(f"llada8b_bf16_{size}"), ours.get(f"llada8b_fp8_{size}"),
                least)
        compare(f"LLaDA-8B {size}: cost of deterministic products (time / fastest)", ours.get(f"llada8b_bf16_{size}"),
                ours.get(f"llada8b_bf16_fast_{size}"))
    for row in rows_of(results, "torch"):
        compare(f"{row['what']}: ours against PyTorch {row['version']}", row["measured_us"], ours.get(row["case"]),
                TORCH_SPEEDUP_MIN.get(row["case"]))
    return found


def microseconds(value):
    return f"{value / 1000:.2f} ms" if value >= 1000 else f"{value:.1f} us"


def mark(row):
    return {True: "met", False: "missed", None: ""}[row.get("met")]


def step_table(results):
    lines = ["| case | measured | floor (of) | ÷ floor | of GEMM ceiling | host gap / step | aim | |",
             "|---|---|---|---|---|---|---|---|"]
    for row in rows_of(results, "step"):
        lines.append(f"| {row['what']} | {microseconds(row['measured_us'])} | {microseconds(row['floor_us'])} ({row['floor_of']}) "
                     f"| {row['ratio']:.2f} | {100 * row['gemm_share']:.0f} % | {microseconds(row['host_gap_us'])} "
                     f"({100 * row['host_gap_share']:.1f} %) | {row['aim']} | {mark(row)} |")
    return lines if len(lines) > 2 else []


def candidates_table(results):
    lines = ["| case | candidates | product alone | ratio | floor (of) | aim | |", "|---|---|---|---|---|---|---|"]
    for row in rows_of(results, "candidates"):
        lines.append(f"| {row['what']} | {microseconds(row['measured_us'])} | {microseconds(row['product_us'])} "
                     f"| {row['product_ratio']:.2f} | {microseconds(row['floor_us'])} ({row['floor_of']}) | {row['aim']} | {mark(row)} |")
    return lines if len(lines) > 2 else []


def experts_table(results):
    lines = ["| case | experts touched | measured | floor (of) | ÷ floor | aim | |", "|---|---|---|---|---|---|---|"]
    for row in rows_of(results, "experts"):
        lines.append(f"| {row['what']} | {row['touched']} of {row['experts']} | {microseconds(row['measured_us'])} "
                     f"| {microseconds(row['floor_us'])} ({row['floor_of']}) | {row['ratio']:.2f} | {row['aim']} | {mark(row)} |")
    return lines if len(lines) > 2 else []


def token_table(results):
    lines = ["| case | steps/s | tokens a forward and sequence | tokens/s | where the second factor comes from |",
             "|---|---|---|---|---|"]
    for row in rows_of(results, "step"):
        for tokens in row.get("tokens", []):
            lines.append(f"| {row['what']} | {row['steps_per_second']:.1f} | {tokens['per_forward']:g} | {tokens['per_second']:.0f} "
                         f"| {tokens['source']} |")
    return lines if len(lines) > 2 else []


def comparison_table(results):
    found = comparisons(results)
    if not found:
        return []
    return ["| comparison | ratio | aim | |", "|---|---|---|---|",
            *[f"| {each['what']} | {each['ratio']:.2f} | {each['aim']} | {mark(each)} |" for each in found]]


def breakdown_tables(results):
    lines = []
    for row in rows_of(results, "breakdown"):
        lines += ["", f"`{row['case']}`, operation by operation (not recorded, so launches may show):", "",
                  "| operation | calls | time | its weights alone |", "|---|---|---|---|"]
        for part in sorted(row["parts"], key=lambda part: -part["us"]):
            floor = microseconds(part["weight_floor_us"]) if part["weight_floor_us"] else ""
            lines.append(f"| {part['operation']} | {part['calls']} | {microseconds(part['us'])} | {floor} |")
    return lines


def test_table(results):
    lines = ["| stage | program | passed | failed | skipped | |", "|---|---|---|---|---|---|"]
    for result in results:
        for program in result.get("programs", []):
            lines.append(f"| {result['stage']} | {program['name']} | {program['passed']} | {program['failed']} "
                         f"| {program['skipped']} | {program['ended']} |")
    return lines if len(lines) > 2 else []


def fenced(lines):
    return ["```", *lines, "```"] if lines else []


def product_lists(results):
    return [line for row in rows_of(results, "products")
            for line in ["", f"From `{row['case']}` on:", "", *fenced(row["choices"])]]


def stage_table(results):
    return ["| stage | verdict | | time |", "|---|---|---|---|",
            *[f"| {result['stage']} | {result['verdict']} | {result['summary']} | {result['seconds']:.0f} s |"
              for result in results]]


def markdown(facts, results):
    device = facts["device"]
    lines = [f"# {device['name']}, {facts['date']}", "",
             f"Commit `{facts['commit']}`, command `{facts['command']}`.", "",
             ", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in device.items()) + ".", "",
             "Floors are worked out from the ceilings that this run measured (docs/benchmarks/gpu.md).", ""]
    failures = [name for result in results for program in result.get("programs", []) for name in program["failures"]]
    for heading, table in (("Stages", stage_table(results)), ("Tests", test_table(results)), ("Steps", step_table(results)),
                           ("Candidates", candidates_table(results)), ("Experts", experts_table(results)), ("Comparisons", comparison_table(results)),
                           ("Collectives between two processes on one device", fenced(stage(results, "collectives").get("lines", []))),
                           ("Tokens", token_table(results)), ("Where a step spends its time", breakdown_tables(results)),
                           ("Algorithms of the matrix products", product_lists(results)),
                           ("Failed tests", [f"- `{name}`" for name in failures])):
        if table:
            lines += [f"## {heading}", "", *table, ""]
    return "\n".join(lines)


def text(facts, results):
    """For a terminal: what matters, last."""
    lines = [line for table in (step_table(results), candidates_table(results), experts_table(results), comparison_table(results),
                              stage_table(results))
             for line in [*table, ""]]
    return "\n".join(lines)


def write(folder, facts, results):
    whole = {**facts, "stages": results, "comparisons": comparisons(results)}
    (folder / "results.json").write_text(json.dumps(whole, indent=1) + "\n")
    (folder / f"gpu-{facts['date']}.md").write_text(markdown(facts, results))
