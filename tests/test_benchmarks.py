"""The benchmarks: rows, regressions, honest references, and a page in step with what is stored."""

import dataclasses
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks import bench, measure, pictures, preparation, report, search
from rectutor import study
from rectutor.sequences import histories, sliding_windows, training_windows

SVG = "{http://www.w3.org/2000/svg}"
ROW = measure.Row("preparation", "one user", 2.0, "ms", 1.0, 3.0, ratio=10.0, reference="NumPy")


def with_ratio(ratio):
    """The row with another ratio."""
    return dataclasses.replace(ROW, ratio=ratio)


class TestRow:
    def test_comes_back_from_json(self):
        stored = json.loads(json.dumps(ROW.as_dict()))
        assert measure.Row.from_dict(stored) == ROW

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"target": ">= 9", "met": False}, "'preparation', 'one user': the target is unmet"),
            ({"target": ">= 9"}, "met=None"),
            ({"met": True}, "target=None"),
            ({"group": "speed"}, "the group is unknown"),
        ],
    )
    def test_what_makes_no_sense_is_named(self, change, message):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(ROW, **change)


@pytest.fixture
def children(tmp_path, monkeypatch):
    """A folder for modules that run as children."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


class TestMeasuring:
    def test_a_slow_minute_leaves_the_ratio(self):
        ours, theirs = [[1.0, 1.2], [3.0, 3.6]], [[10.0, 12.0], [30.0, 36.0]]
        assert measure.ratio_of(theirs, ours) == pytest.approx(10)
        assert measure.ratio_of([*theirs, [50.0]], [*ours, [1.0]]) == pytest.approx(10)

    def test_children_run_in_turns(self, monkeypatch):
        ran = []
        monkeypatch.setattr(measure, "in_child", lambda *call: (ran.append(call), 1.0))
        found = measure.in_turns("some", {"ours": [1], "loop": [2]}, 2)
        assert ran == [("some", 1), ("some", 2)] * 2
        assert {name: len(rounds) for name, rounds in found.items()} == {"ours": 2, "loop": 2}

    def test_a_child_hands_back_figures_and_its_own_peak(self, children):
        module = "import sys\nfrom benchmarks import measure\nbig = bytearray(100 * 2**20)\n"
        (children / "some_child.py").write_text(
            f"{module}measure.finish({{'given': sys.argv[1:]}})"
        )
        payload, peak = measure.in_child("some_child", 7, "x")
        assert payload == {"given": ["7", "x"]}
        assert 100 < peak < 400

    @pytest.mark.parametrize(
        ("program", "message"),
        [("raise OSError('no room')", r"status 1[^$]*no room"), ("print('done')", "no payload")],
    )
    def test_a_child_that_fails_is_told_with_its_last_lines(self, program, message, children):
        (children / "bad_child.py").write_text(program)
        with pytest.raises(RuntimeError, match=message):
            measure.in_child("bad_child")


class TestRegressions:
    @pytest.mark.parametrize(
        ("change", "fell"),
        [
            *(({"ratio": ratio}, False) for ratio in (8.6, 10.0, 30.0, None)),
            ({"ratio": 8.4}, True),
            ({"ratio": 5.0, "judged": False}, False),  # its reference is our own
            ({"value": 200.0, "low": 100.0, "high": 300.0}, False),  # a slower machine
        ],
    )
    def test_only_a_judged_ratio_that_fell_by_more_than_15_percent_counts(self, change, fell):
        found = bench.regressions([dataclasses.replace(ROW, **change)], [ROW])
        assert list(found) == (["preparation: one user"] if fell else [])

    def test_the_newest_run_of_such_a_machine_counts_and_peers_are_no_run(self, tmp_path):
        here = {"cpu": "A", "cores": 2}
        for date in ("2026-01-02", "2026-01-10", "2026-01-03"):
            bench.write({"date": date, "machine": here}, tmp_path)
        (tmp_path / "peers-2026-02-01.json").write_text("{}")
        assert bench.last_run(here, tmp_path) == {"date": "2026-01-10", "machine": here}
        assert bench.last_run(here | {"cpu": "B"}, tmp_path) is None
        assert bench.last_run(here | {"cores": 4}, tmp_path) is None


@pytest.fixture
def bench_with(tmp_path, monkeypatch):
    """Runs a bench of one made-up row in folders of its own; gives status, run and folders."""
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    monkeypatch.setattr(bench, "ASIDE", tmp_path / "aside")
    monkeypatch.setattr(bench, "machine", lambda: {"cpu": "A", "cores": 2})
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(report, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(report, "wanted", lambda: {tmp_path / "page.md": "the page"})
    monkeypatch.setattr(bench, "last_run", lambda here: stored(tmp_path))

    def stored(folder):
        files = sorted((folder / "results").glob("*.json"))
        return json.loads(files[-1].read_text()) if files else None

    def run(ratio, *options):
        def measured(group, quick):
            if ratio is None:
                raise RuntimeError("it broke")
            return [with_ratio(ratio)] if group == "preparation" else []

        monkeypatch.setattr(bench, "measure_group", measured)
        return bench.main(list(options)), stored(tmp_path)

    return run


class TestBench:
    def test_a_good_run_is_stored_and_written(self, bench_with, tmp_path):
        for ratio in (10.0, 20.0):  # a risen ratio becomes the reference
            status, run = bench_with(ratio)
            assert status == 0
            assert run["rows"] == [with_ratio(ratio).as_dict()]
        assert (tmp_path / "page.md").read_text() == "the page"

    def test_a_fallen_ratio_fails_and_leaves_the_stored_run(self, bench_with, tmp_path, capsys):
        bench_with(10.0)
        status, run = bench_with(5.0)
        assert status == 1
        assert run["rows"][0]["ratio"] == 10.0
        assert "preparation: one user: the ratio fell from 10.0 to 5.00" in capsys.readouterr().err
        assert list((tmp_path / "aside").glob("*.json"))

    def test_a_group_that_breaks_fails_the_run_and_stores_nothing(self, bench_with, capsys):
        assert bench_with(None) == (1, None)
        assert "error: start-up did not run" in capsys.readouterr().err

    @pytest.mark.parametrize("options", [["--no-store"], ["--only", "preparation"], ["--quick"]])
    def test_part_of_a_run_is_not_stored(self, bench_with, options):
        assert bench_with(10.0, *options) == (0, None)

    @pytest.mark.parametrize(
        ("ratios", "last_repeat", "counts"),
        [([5.0, 9.9], 60, 9.9), ([5.0, 4.0], 60, 5.0), ([5.0, 9.9], 0, 5.0), ([9.0, 0.0], 60, 9.0)],
        ids=["it was a moment", "it fell", "no time is left", "it did not fall"],
    )
    def test_a_group_is_measured_again_before_it_counts_as_fallen(
        self, monkeypatch, ratios, last_repeat, counts
    ):
        measured = iter(ratios)
        monkeypatch.setattr(preparation, "measure", lambda quick: [with_ratio(next(measured))])
        monkeypatch.setattr(bench, "LAST_REPEAT", last_repeat)
        groups = bench.measure_groups(["preparation"], False, [ROW])
        assert groups["preparation"].rows == [with_ratio(counts)]


class TestReferences:
    """What ours is compared with does the same."""

    @pytest.mark.parametrize(
        ("ours", "loop"),
        [
            (sliding_windows, preparation.loop_sliding_windows),
            (training_windows, preparation.loop_training_windows),
        ],
    )
    def test_windows(self, ours, loop):
        ratings = preparation.ratings_of(2_000)
        for one, other in zip(ours(histories(ratings), 7), loop(ratings, 7), strict=True):
            np.testing.assert_array_equal(one, other)

    def test_negatives_of_both_were_never_watched(self):
        ratings = preparation.ratings_of(2_000)
        loop = preparation.loop_training_windows(ratings, preparation.LENGTH, 100)
        preparation.check_negatives(ratings, loop, 100)
        preparation.check_negatives(ratings, preparation.our_negatives(ratings, 100), 100)
        inputs, targets, _ = loop
        with pytest.raises(AssertionError):
            preparation.check_negatives(ratings, (inputs, targets, targets), 100)


class TestPage:
    def test_shows_what_is_stored(self):
        """`python -m benchmarks.report write` puts it in step."""
        wanted = report.wanted()
        assert [path for path, text in wanted.items() if path.read_text("utf-8") != text] == []
        assert len(wanted) == 7

    def test_another_figure_makes_other_tables(self):
        run = report.newest(report.RUNS)
        before = report.tables(run)
        run["rows"][0]["value"] *= 2
        assert report.tables(run) != before

    def test_the_check_names_what_is_out_of_step(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(report, "ROOT", tmp_path)
        monkeypatch.setattr(report, "wanted", lambda: {tmp_path / "a.svg": "x"})
        monkeypatch.setattr("sys.argv", ["report", "check"])
        assert report.main() == 1
        assert "a.svg shows other figures" in capsys.readouterr().err
        report.write()
        assert report.main() == 0

    def test_limits_of_unmet_targets_are_told(self):
        row = dataclasses.replace(ROW, target=">= 20 times", met=False, limit="slow memory")
        run = report.newest(report.RUNS) | {"rows": [row.as_dict()]}
        text = report.tables(run)
        assert "0 of 1 targets are met" in text
        assert "- one user: slow memory." in text
        assert "no" in report.markdown_table([row]).split()


class TestPictures:
    def test_bars_are_as_long_as_their_values(self):
        drawn = ElementTree.fromstring(pictures.bars({"": {"a": 2.0, "b <": 1.0}}, "s", "{:.1f}"))
        a, b = (float(bar.get("width")) for bar in drawn.iter(f"{SVG}rect"))
        assert a == pytest.approx(2 * b)
        assert drawn.get("aria-label") == "Bars, s. a: 2.0; b <: 1.0."

    def test_a_tenfold_is_a_step_of_one_length(self):
        line = [(10.0, 1.0), (100.0, 10.0), (1000.0, 100.0)]
        drawn = ElementTree.fromstring(pictures.curves({"one": line}, "items", "ms"))
        dots = [(float(c.get("cx")), float(c.get("cy"))) for c in drawn.iter(f"{SVG}circle")]
        steps = np.diff(dots, axis=0)
        np.testing.assert_allclose(steps[0], steps[1], atol=0.2)
        assert steps[0][0] > 0 > steps[0][1]


class TestSearch:
    def test_an_index_looks_until_it_finds_enough(self):
        items, queries = search.vectors(500)
        exact, clusters, _ = (search.measured(name, items, queries) for name in search.INDEXES)
        assert exact["recall"] == 1.0
        assert clusters["recall"] >= 0.9
        assert clusters["setting"].startswith("IVF22,Flat nprobe=")


@pytest.mark.long
def test_a_quick_bench_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    monkeypatch.setattr(bench, "ASIDE", tmp_path)
    assert bench.main(["--quick", "--only", "preparation"]) == 0
    run = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert {row["group"] for row in run["rows"]} == {"preparation"}


def test_a_sampled_machine_stands_beside_models_with_the_same_ids():
    """Its figure is the mean of its runs; ours are the study's, in stars."""
    runs = [{"seed": 1, "rmse": 0.9, "seconds": 5.2}, {"seed": 2, "rmse": 1.0, "seconds": 9.1}]
    sampled = {"rank": 3, "samples": 7, "machine": {"cpu": "some processor", "cores": 1}}
    text = report.sampled_table(sampled | {"runs": {"random split": runs, "five folds": runs[:1]}})
    assert re.search(r"\| myFM, rank 3, 7 samples +\| 0\.950 +\| 0\.900 +\|", text)
    ours = 4 * study.read().arms["ranking/one member"].metrics["rmse"].value
    assert re.search(rf"one member +\| {ours:.3f} ", text)
    assert "5 to 9 s" in text
