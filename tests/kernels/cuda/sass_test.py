#!/usr/bin/env python3
"""Reads the machine code of the CUDA kernels: what they are meant to be made of has to be there, without a device.

usage: sass_test.py LIBRARY NVCC      (LIBRARY: what nvcc has compiled)
       sass_test.py --no-nvcc         (says that there is none)
Ends 77, skipped, without nvcc or a disassembler.
"""
import collections
import os
import pathlib
import re
import shutil
import subprocess
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[3]
LIBRARY = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else None
NVCC = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else None
SKIPPED = 77

LOCAL = ("LDL", "STL")
WIDE_LOAD = ("LDG.128",)

# kernels: by their demangled names. required: of each group of instructions every kernel must have one. forbidden: none may
# be there. hot: look only at the innermost loop that has the first group, where what happens once an item is not counted.
Rule = collections.namedtuple("Rule", "kernels required forbidden why hot", defaults=[False])
RULES = [
    Rule(r"\bTensorCoreKernel<", [("HMMA", "HGMMA"), ("LDGSTS",), ("LDSM",)], LOCAL,
         "attention multiplies on tensor cores, from tiles that are copied asynchronously", hot=True),
    Rule(r"\bExpertTensorCoreKernel<", [("HMMA", "HGMMA"), ("LDGSTS",), ("LDSM",)], LOCAL,
         "experts are multiplied on tensor cores, from tiles that are copied asynchronously"),
    Rule(r"\bSumExpertsKernel<", [WIDE_LOAD], LOCAL, "outputs of experts are read once, 16 bytes a thread"),
    Rule(r"\bRouteKernel<", [], LOCAL, "a thread's scores stay in registers"),
    Rule(r"\bMergeKernel<", [WIDE_LOAD], LOCAL, "parts of split attention are read once, 16 bytes a thread"),
    Rule(r"\b(RmsNorm|GatedMul|AddBias)Kernel<|\bLookUpKernel<(\w+), \2>", [WIDE_LOAD], LOCAL,
         "row kernels are bound by memory: 16 bytes a thread"),
    Rule(r"\bRotateAndCacheKernel<", [], LOCAL, "a thread's part of a head stays in registers"),
    Rule(r"\bCandidatePartsKernel\b", [WIDE_LOAD], LOCAL, "logits are read once, 16 bytes a thread"),
    Rule(r"\bQuantizeRowsKernel<", [WIDE_LOAD], LOCAL, "rows are read 16 bytes a thread"),
    Rule(r"\b(One|Two)ShotKernel<", [WIDE_LOAD], (), "peers' memory is read 16 bytes a thread"),
]

# target: of a branch, else None.
Instruction = collections.namedtuple("Instruction", "address opcode target")


def disassembler():
    """The newest cuobjdump that is at hand: beside nvcc, on the path, or of the wheel nvidia-cuda-cuobjdump."""
    beside = [NVCC.resolve().parent / "cuobjdump"] if NVCC else []
    wheels = sorted(ROOT.glob(".venv/lib/python*/site-packages/nvidia/**/bin/cuobjdump"), reverse=True)
    found = shutil.which("cuobjdump")
    for path in [*beside, *([pathlib.Path(found)] if found else []), *wheels]:
        if path.is_file():
            return path
    return None


def parse(text):
    """{mangled kernel: [Instruction]}"""
    line_of_code = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*)")
    kernels, code = {}, None
    for line in text.splitlines():
        if function := re.match(r"\s*Function : (\S+)", line):
            code = kernels.setdefault(function.group(1), [])
        elif code is not None and (found := line_of_code.match(line)):
            target = re.search(r"0x([0-9a-f]+)", found.group(3)) if found.group(2).startswith("BRA") else None
            code.append(Instruction(int(found.group(1), 16), found.group(2), int(target.group(1), 16) if target else None))
    return kernels


def count(code):
    """Opcodes: "HMMA", and with the width of a load or store "LDG.128", too."""
    counts = collections.Counter()
    for instruction in code:
        parts = instruction.opcode.split(".")
        counts[parts[0]] += 1
        if "128" in parts:
            counts[parts[0] + ".128"] += 1
    return counts


def innermost_loop(code, opcodes):
    """The shortest run of code that ends with a branch to its begin and has one of `opcodes`; [] without one."""
    loops = [[i for i in code if branch.target <= i.address <= branch.address]
             for branch in code if branch.target is not None and branch.target < branch.address]
    return min((loop for loop in loops if any(count(loop)[one] for one in opcodes)), key=len, default=[])


def demangle(names):
    if not shutil.which("c++filt"):
        return dict(zip(names, names))
    out = subprocess.run(["c++filt"], input="\n".join(names), check=True, capture_output=True, text=True).stdout
    return dict(zip(names, out.splitlines()))


def problems_of(kernels, rules):
    """One line for every rule that matches no kernel, and for every kernel and instruction that breaks one."""
    problems = []
    for rule in rules:
        matching = {name: code for name, code in kernels.items() if re.search(rule.kernels, name)}
        if not matching:
            problems.append(f"no kernel matches {rule.kernels}: renamed, or no longer compiled?")
        for name, code in matching.items():
            short = re.sub(r"\(anonymous namespace\)::|quicksilver::|^void ", "", name.split("(quicksilver")[0])
            where = " in its innermost loop" if rule.hot else ""
            counts = count(innermost_loop(code, rule.required[0]) if rule.hot else code)
            for group in rule.required:
                if not any(counts[one] for one in group):
                    problems.append(f"{short}: no {' or '.join(group)}{where} ({rule.why})")
            for bad in rule.forbidden:
                if counts[bad]:
                    problems.append(f"{short}: {counts[bad]} x {bad}{where}: registers spill to local memory ({rule.why})")
    return problems


class Parser(unittest.TestCase):
    TEXT = """
        Function : _Z3onev
    .headerflags    @"EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;  /* 0x00000a00ff017b82 */
        /*0010*/              @!P0 LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*0020*/                   STL [R1], R4 ;
        /*0030*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0040*/               @P0 BRA 0x30 ;
        /*0050*/                   BRA 0x10 ;
        Function : _Z3twov
        /*0000*/              @UP1 STL.64 [R1+0x8], R2 ;
"""

    def problems(self, *rules):
        return [line.split(" (")[0] for line in problems_of(parse(self.TEXT), rules)]

    def test_opcodes_are_counted_by_kernel_with_and_without_a_predicate(self):
        kernels = parse(self.TEXT)
        self.assertEqual(count(kernels["_Z3onev"]), {"LDC": 1, "LDG": 1, "LDG.128": 1, "STL": 1, "HMMA": 1, "BRA": 2})
        self.assertEqual(count(kernels["_Z3twov"]), {"STL": 1})

    def test_a_missing_a_forbidden_instruction_and_a_vanished_kernel_are_named(self):
        self.assertEqual(self.problems(Rule("one", [("HMMA", "HGMMA"), ("LDSM",)], (), "a"), Rule("two", [], LOCAL, "b"),
                                       Rule("three", [], (), "c")),
                         ["_Z3onev: no LDSM", "_Z3twov: 1 x STL: registers spill to local memory",
                          "no kernel matches three: renamed, or no longer compiled?"])

    def test_a_hot_rule_looks_at_the_innermost_loop_alone(self):
        self.assertEqual(self.problems(Rule("one", [("HMMA",)], LOCAL, "a", hot=True)), [])
        self.assertEqual(self.problems(Rule("one", [("LDG",)], LOCAL, "a", hot=True)),
                         ["_Z3onev: 1 x STL in its innermost loop: registers spill to local memory"])
        self.assertEqual(self.problems(Rule("two", [("STL",)], (), "a", hot=True)),
                         ["_Z3twov: no STL in its innermost loop"])


class Kernels(unittest.TestCase):
    def test_kernels_are_made_of_what_they_are_meant_to(self):
        path = f"{disassembler().parent}:{os.environ['PATH']}"  # It calls nvdisasm.
        done = subprocess.run([disassembler(), "-sass", LIBRARY], env={**os.environ, "PATH": path}, capture_output=True,
                              text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        text = done.stdout
        kernels = parse(text)
        self.assertGreater(len(kernels), 30, f"{LIBRARY} holds hardly any kernel")
        names = demangle(list(kernels))
        problems = problems_of({names[mangled]: code for mangled, code in kernels.items()}, RULES)
        if problems:
            self.fail("\n" + "\n".join(problems))


if __name__ == "__main__":
    if LIBRARY is None:
        sys.exit(__doc__)
    if sys.argv[1] == "--no-nvcc":
        print("skipped: no nvcc, so the CUDA backend was not built")
        sys.exit(SKIPPED)
    if disassembler() is None:
        print("skipped: no cuobjdump beside nvcc, on the path or in .venv (tools/install_dependencies --tests)")
        sys.exit(SKIPPED)
    print(f"disassembler: {disassembler()}")
    unittest.main(argv=[sys.argv[0], "-v"])
