#!/usr/bin/env python3
"""bench/peers without its peers: statistics and rows on samples made up here, flags, and what a run writes when
one side fails. usage: peers_test.py DSV2 SOURCE_DIR; the standard library alone."""
import contextlib
import importlib.machinery
import importlib.util
import io
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest
import unittest.mock

sys.dont_write_bytecode = True
DSV2, SOURCE = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
RUN = SOURCE / "bench" / "peers" / "run"
sys.path.insert(0, str(RUN.parent))

import rows  # noqa: E402
import shapes  # noqa: E402
import sides  # noqa: E402
import worker  # noqa: E402


def load_run():
    loader = importlib.machinery.SourceFileLoader("peers_run", str(RUN))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("peers_run", loader))
    loader.exec_module(module)
    return module


peers_run = load_run()


class Statistics(unittest.TestCase):
    def test_quartiles(self):
        self.assertIsNone(rows.quartiles([]))
        self.assertEqual(rows.quartiles([3]), [3, 3, 3])
        self.assertEqual(rows.quartiles([5, 1, 4, 2, 3]), [2, 3, 4])
        self.assertEqual(rows.quartiles([4, 1, 2, 3]), [1.75, 2.5, 3.25])

    def test_tokens_per_s(self):
        self.assertEqual(rows.tokens_per_s(512, 2e9), 256)

    def test_fastest(self):
        variants = {"a": {("prefill", 0): 1.0, ("decode", 9): 5.0}, "b": {("prefill", 0): 2.0}, "failed": {}}
        self.assertEqual(rows.fastest(variants, ("prefill", 0)), "b")
        self.assertEqual(rows.fastest(variants, ("decode", 9)), "a")
        self.assertIsNone(rows.fastest(variants, ("decode", 1)))

    def test_roof_is_the_slower_of_computing_and_reading(self):
        # 1 GFLOP at 100 GFLOP/s: 10 ms; 1 GB at 50 GB/s: 20 ms
        self.assertAlmostEqual(rows.roof_tokens_per_s(1, 1e9, 1e9, 100, 50), 50)
        self.assertAlmostEqual(rows.roof_tokens_per_s(512, 1e10, 1e9, 100, 50), 5120)


class Rows(unittest.TestCase):
    identity = {"shape": "s", "what": "decode", "depth": 512}

    def test_ratio_is_that_of_the_medians(self):
        row = rows.assemble(self.identity, [{"ours": 20, "peer": 10, "roof": 40}, {"ours": 60, "peer": 20, "roof": 100},
                                            {"ours": 30, "peer": 30, "roof": 40}])
        self.assertEqual((row["ours"], row["peer"], row["ratio"]), (30, 20, 1.5))
        self.assertEqual(row["ours_quartiles"], [25, 45])
        self.assertEqual(row["ratio_quartiles"], [1.5, 2, 2.5])  # of 2, 3, 1
        self.assertEqual(row["ours_rounds"], [20, 60, 30])
        self.assertEqual(row["ours_share_of_roof"], 0.6)  # of 0.5, 0.6, 0.75
        self.assertEqual(row["peer_share_of_roof"], 0.25)
        self.assertEqual(row["shape"], "s")

    def test_a_side_without_figures_is_null(self):
        row = rows.assemble(self.identity, [{"ours": None, "peer": 10, "roof": None}])
        for key in ("ours", "ours_quartiles", "ratio", "ratio_quartiles", "ours_share_of_roof", "peer_share_of_roof"):
            self.assertIsNone(row[key], key)
        self.assertEqual(row["peer"], 10)

    def test_a_round_that_one_side_lost_counts_for_the_other(self):
        row = rows.assemble(self.identity, [{"ours": 20, "peer": None, "roof": 40},
                                            {"ours": 40, "peer": 10, "roof": 80}])
        self.assertEqual((row["ours"], row["peer"], row["ratio_quartiles"]), (30, 10, [4, 4, 4]))

    def test_a_busy_machine_is_said_to_be_one(self):
        self.assertEqual(rows.busy_warning(None), "")
        self.assertEqual(rows.busy_warning({"median": 0.04, "min": 0, "max": 1.5}), "")
        self.assertIn("other processes kept 1.6 processors busy (1.2-1.9)",
                      rows.busy_warning({"median": 1.61, "min": 1.2, "max": 1.9}))

    def test_summary(self):
        self.assertEqual(rows.summary([3, None, 1, 2]), {"median": 2, "min": 1, "max": 3})
        self.assertIsNone(rows.summary([None]))


class FakePeer:
    """Twice as slow with the second loading; the second form is best at decode alone."""

    name = "fake"
    facts = {}
    calls = []

    def __init__(self, fail=None):
        self.fail = fail

    def unsupported(self, job):
        return "not int4" if job.dtype == "int4" else None

    def dtype(self, job, variant):
        return "FAKE", "f16"

    def loadings(self, job):
        return ["fast,fa=1", "slow,fa=1"]

    def forms(self, job, loading):
        return [loading, loading.replace("fa=1", "fa=0")]

    def variants(self, job, plans, round_number, repetitions, generate, of=None):
        self.calls.append(plans)
        if self.fail:
            return {}, self.fail, {}
        speeds = {}
        for name, keys in plans.items():
            base = 100 if "fast" in name else 50
            better = "decode" if "fa=0" in name else "prefill"
            speeds[name] = {key: base * (2 if key[0] == better else 1) + round_number for key in keys}
        return speeds, None, {}


class FakeOurs:
    name = "dsv2"
    machine, version, wrong = {"cpu": "made up"}, {}, []

    def __init__(self, fail=None):
        self.fail, self.limits = fail, []

    def cost(self, job, key):
        return 1e9, 1e9

    def measure(self, job, round_number):
        if self.fail:
            return {}, self.fail, {}
        limits = {"read_bandwidth_gb_s": 50, "peak_f32_gflop_s": 100, "peak_bf16_gflop_s": 200,
                  "peak_int8_gflop_s": 400}
        self.limits.append(limits)
        return {key: 300.0 + 3 * round_number for key in job.keys}, None, {"limits": limits}


class Alternation(unittest.TestCase):
    def run_with(self, ours, peer, dtype="bf16", rounds=3):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        path = pathlib.Path(self.folder.name) / "r.json"
        args = peers_run.parse_args(["--json", str(path), "--markdown", str(path.with_suffix(".md")), "--rounds",
                                     str(rounds), "--cache", self.folder.name, "--peers", "llama.cpp"])
        run = peers_run.Run(args, DSV2)
        run.ours, run.peers = ours, [peer]
        with contextlib.redirect_stderr(io.StringIO()):
            run.measure(sides.Job("deepseek-ocr", dtype, "bf16", args))
        run.write(final=True)
        return json.loads(path.read_text()), path.with_suffix(".md").read_text()

    def test_sides_alternate_and_rows_come_out(self):
        report, table = self.run_with(FakeOurs(), FakePeer())
        self.assertEqual([m["side"] for m in report["measurements"]], ["dsv2", "fake", "fake", "dsv2", "dsv2", "fake"])
        self.assertEqual([(r["what"], r["depth"]) for r in report["rows"]],
                         [("prefill", 0), ("decode", 512), ("decode", 4096)])
        for row in report["rows"]:
            self.assertLessEqual({"shape", "what", "dtype", "kv_dtype", "depth", "ours", "peer", "peer_name", "ratio"},
                                 row.keys())
            self.assertEqual((row["ours"], row["peer"], row["peer_name"]), (303, 201, "fake"))
            self.assertAlmostEqual(row["ratio"], 303 / 201)
        self.assertEqual([r["peer_variant"] for r in report["rows"]], ["fast,fa=1", "fast,fa=0", "fast,fa=0"])
        self.assertEqual(report["machine"]["limits"]["read_bandwidth_gb_s"], {"median": 50, "min": 50, "max": 50})
        self.assertIn("| deepseek-ocr | prefill 512 | 0 | bf16 | bf16 | 303.0 (301.5-304.5) |", table)
        self.assertIn("**1.51**", table)
        self.assertFalse(report["complete"])

    def test_only_the_rows_that_a_variant_won_are_measured_with_it(self):
        peer = FakePeer()
        peer.calls = []
        self.run_with(FakeOurs(), peer, rounds=1)
        self.assertEqual(peer.calls[-1], {"fast,fa=1": [("prefill", 0)],
                                          "fast,fa=0": [("decode", 512), ("decode", 4096)]})

    def test_what_dsv2_refuses_is_null_with_the_reason(self):
        report, table = self.run_with(FakeOurs("skipped: dtype: expected f32 or bf16, found int8"), FakePeer(), "int8")
        for row in report["rows"]:
            self.assertEqual((row["ours"], row["ratio"]), (None, None))
            self.assertEqual(row["ours_reason"], "skipped: dtype: expected f32 or bf16, found int8")
            self.assertEqual(row["peer"], 201)
        self.assertIn("- deepseek-ocr int8: skipped: dtype: expected f32 or bf16, found int8", table)

    def test_a_peer_that_fails_is_null_with_the_reason(self):
        report, table = self.run_with(FakeOurs(), FakePeer("SIGKILL"))
        for row in report["rows"]:
            self.assertEqual((row["peer"], row["ratio"], row["peer_reason"]), (None, None, "SIGKILL"))
            self.assertEqual(row["ours"], 303)
        self.assertIn("- deepseek-ocr bf16: SIGKILL", table)

    def test_a_peer_without_the_dtype_has_no_rows(self):
        report, _ = self.run_with(FakeOurs(), FakePeer(), "int4")
        self.assertEqual(report["rows"], [])


class Worker(unittest.TestCase):
    def test_a_variant_names_its_rows(self):
        argv = ["w", "--model", "m", "--depth", "4096,512", "--variant", "a=1,b=x", "--variant", "a=2@prefill,4096",
                "--variant", "a=3@512"]
        with unittest.mock.patch.object(sys, "argv", argv):
            plans = worker.parse_args("").plans
        self.assertEqual(plans, [("a=1,b=x", True, [512, 4096]), ("a=2", True, [4096]), ("a=3", False, [512])])
        self.assertEqual(worker.settings("a=1,b=x"), {"a": "1", "b": "x"})

    def test_what_kills_a_child_is_named(self):
        self.assertEqual(sides.child_json([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]),
                         (None, "SIGKILL"))
        self.assertEqual(sides.child_json([sys.executable, "-c", "raise SystemExit('no room')"]),
                         (None, "exit code 1: no room"))
        self.assertEqual(sides.child_json([sys.executable, "-c", "print('[1]')"]), ([1], None))


class Dsv2(unittest.TestCase):
    """The real program, on a shape that takes milliseconds."""

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        shapes.SHAPES["tiny-mla"] = "tiny-mla"
        self.addCleanup(shapes.SHAPES.pop, "tiny-mla")
        self.models = sides.Models(pathlib.Path(self.folder.name), DSV2, 1)
        self.options = peers_run.parse_args(["--json", "-", "--prompt", "16", "--depth", "8,32", "--generate", "4"])

    def ours(self):
        with contextlib.redirect_stderr(io.StringIO()):
            self.models.folder("tiny-mla")
        return sides.Ours(DSV2, self.models)

    def test_every_row_has_a_speed_and_a_cost(self):
        ours, job = self.ours(), sides.Job("tiny-mla", "bf16", "bf16", self.options)
        speeds, reason, facts = ours.measure(job, 0)
        self.assertIsNone(reason)
        self.assertEqual(list(speeds), job.keys)
        for key in job.keys:
            flops, total = ours.cost(job, key)
            self.assertGreater(min(flops, total, speeds[key]), 0)
        self.assertGreater(min(facts["limits"].values()), 0)
        self.assertEqual(ours.wrong, [])

    def test_an_unknown_dtype_is_a_reason(self):
        speeds, reason, _ = self.ours().measure(sides.Job("tiny-mla", "fp8", "bf16", self.options), 0)
        self.assertEqual(speeds, {})
        self.assertRegex(reason, "exit code 2: .*--dtype: expected f32, bf16, int8 or int4, found fp8")

    def test_reference_logits_are_of_the_last_position(self):
        ours = self.ours()
        sides.CHECKED_IDS, kept = "11,3,7", sides.CHECKED_IDS
        self.addCleanup(setattr, sides, "CHECKED_IDS", kept)
        logits = ours.reference_logits("tiny-mla")
        generated = json.loads(subprocess.run(
            [DSV2, "generate", "--model", self.models.folder("tiny-mla"), "--backend", "reference", "--prompt-ids",
             "11,3,7", "--max-new-tokens", "1", "--eos", "none", "--json", "-"], check=True, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL).stdout)
        self.assertEqual(len(logits), 128)
        self.assertEqual([max(range(128), key=logits.__getitem__)], generated["ids"])

    def test_the_short_lite_shape_has_the_layers_of_the_preset(self):
        path = pathlib.Path(self.folder.name) / "config.json"
        path.write_text(json.dumps(shapes.V2_LITE_8L))

        def layers(*model):
            cost = subprocess.run([DSV2, "cost", *model, "--json", "-"], check=True, stdout=subprocess.PIPE,
                                  stderr=subprocess.DEVNULL).stdout
            return [layer for layer in json.loads(cost)["layers"] if layer["kind"] in ("dense", "moe")]

        short, whole = layers("--model", path), layers("--preset", "deepseek-v2-lite")
        self.assertEqual((len(short), len(whole)), (8, 27))
        self.assertTrue(short == whole[:8], "layers differ from those of deepseek-v2-lite")


class Command(unittest.TestCase):
    def run_with(self, *args):
        return subprocess.run([sys.executable, RUN, *args], capture_output=True, text=True, check=False)

    def test_help(self):
        result = self.run_with("--help")
        self.assertEqual(result.returncode, 0)
        for flag in ("--json", "--shape", "--dtypes", "--build", "--rounds"):
            self.assertIn(flag, result.stdout)

    def test_bad_usage_is_one_clear_line_and_exit_code_2(self):
        for args, line in (
            ([], "--json: expected a file for the report, or -"),
            (["--json", "-", "--shape", "llama"], "--shape: expected deepseek-ocr, deepseek-v2-lite-8l, found llama"),
            (["--json", "-", "--dtypes", "bf16,fp8"], "--dtypes: expected bf16, int8, int4, found fp8"),
            (["--json", "-", "--peers", "vllm"], "--peers: expected llama.cpp, transformers, found vllm"),
            (["--json", "-", "--rounds", "0"], "--rounds: expected a number of at least 1, found 0"),
            (["--json", "-", "--rounds", "two"], "--rounds: expected a number of at least 1, found two"),
            (["--json", "-", "--depth", "512,x"], "--depth: expected numbers of at least 1, found 512,x"),
            (["--json", "-", "--prompt", "0", "--depth", ""],
             "--prompt, --depth: expected something to measure, found neither"),
            (["--json", "/no/such/folder/f"], "--json: /no/such/folder/f: expected a folder that exists"),
            (["--json", "-", "--build", "/no/such"], "--build: /no/such: no dsv2 there; cmake --preset release && "
                                                     "cmake --build build/release --target dsv2"),
            (["--json", "-", "--frobnicate"], "unrecognized arguments: --frobnicate"),
        ):
            result = self.run_with(*args)
            self.assertEqual((result.returncode, result.stderr, result.stdout), (2, f"bench/peers/run: {line}\n", ""))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
