"""What a submission carries: data, code, and a spec that means the same on the cluster."""

import shutil
from pathlib import Path

import pytest
from small_spec import jsonl_source, small

from cluster.packing import JOB, node_run_dir, pack
from cluster.spec import Spec, load_spec, parse_spec
from trainer.types import BadInput


@pytest.fixture
def into(tmp_path: Path) -> Path:
    (tmp_path / "package").mkdir()
    return tmp_path / "package"


def spec_of(**changes: dict) -> Spec:
    data = small()
    data["recipe"] = data["recipe"][2:]  # a JSONL file need not give worked examples
    for section, fields in changes.items():
        data[section] = {**data.get(section, {}), **fields}
    return parse_spec(data, "test")


def test_the_packed_spec_differs_only_in_where_things_are(tmp_path, into):
    spec = spec_of(task={"sources": [jsonl_source(tmp_path / "sums.jsonl")]})
    pack(spec, 500.0, [], into)
    shutil.move(into, tmp_path / "elsewhere")
    there = load_spec(tmp_path / "elsewhere" / JOB / "spec.yaml")
    packed = Path(there.task.sources[0].path)
    assert packed.read_bytes() == (tmp_path / "sums.jsonl").read_bytes()
    assert packed.stem == "sums", "the family's name"
    assert (there.cluster.address, there.limits.queue_timeout_s) == ("auto", 500.0)
    there.task.sources[0].path, there.cluster.address = spec.task.sources[0].path, None
    there.limits.queue_timeout_s = None
    assert there == spec


def test_other_data_gives_another_spec(tmp_path):
    texts = set()
    for lines in (20, 21):
        (tmp_path / str(lines)).mkdir()
        spec = spec_of(task={"sources": [jsonl_source(tmp_path / "sums.jsonl", lines)]})
        pack(spec, 1.0, [], tmp_path / str(lines))
        texts.add((tmp_path / str(lines) / JOB / "spec.yaml").read_text())
    assert len(texts) == 2


def test_reward_modules_and_packages_travel_without_being_imported(tmp_path, into, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "judge_pkg" / "inner").mkdir(parents=True)
    (tmp_path / "judge_pkg" / "inner" / "score.py").write_text("raise SystemExit('imported')")
    (tmp_path / "helper.py").write_text("raise SystemExit('imported')")
    pack(spec_of(task={"reward": "judge_pkg.inner.score:f"}), 1.0, [tmp_path / "helper.py"], into)
    assert (into / "judge_pkg" / "inner" / "score.py").is_file()
    assert (into / "helper.py").is_file()


def test_an_installed_reward_is_left_to_the_cluster(into):
    pack(spec_of(task={"reward": "math_verify:verify"}), 1.0, [], into)
    assert [path.name for path in into.iterdir()] == [JOB]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"task": {"reward": "no_such_module:f"}}, "task.reward: no module no_such_module"),
        ({"task": {"reward": "math_verify"}}, "task.reward"),
        ({"task": {"reward": "rewards.inner:f"}}, "task.reward: no module rewards.inner"),
        ({"task": {"sources": [{"kind": "jsonl", "path": "/no/such.jsonl"}]}}, r"task.sources.0.path: /no/such.jsonl"),
        ({"model": {"source": "./weights"}}, "model.source: ./weights: give an absolute path"),
    ],
)
def test_what_is_missing_is_named(changes, named, into):
    with pytest.raises(BadInput, match=named):
        pack(spec_of(**changes), 1.0, [], into)


def test_too_much_is_refused(tmp_path, into, monkeypatch):
    monkeypatch.setattr("cluster.packing.MOST_BYTES", 100)
    with pytest.raises(BadInput, match="at most"):
        pack(spec_of(), 1.0, [], into)


@pytest.mark.parametrize(
    ("directory", "found"),
    [("runs", "~/runs/small"), ("/nfs/runs", "/nfs/runs/small"), ("~/x", "~/x/small")],
)
def test_a_run_directory_survives_its_job(directory, found):
    assert node_run_dir(spec_of(run={"directory": directory})) == found
