"""A plan file says exactly what was chosen, and says what is wrong with what a person wrote."""

import json
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeplan.cluster.layout import DROPS, Layout
from moeplan.errors import UserError
from moeplan.parallel import Overheads, ServingJob, TrainingJob
from moeplan.plan.chosen import Chosen
from moeplan.quantity import plain

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=20)
DEGREES = st.integers(1, 4096)
LAYOUTS = st.builds(
    Layout,
    **dict.fromkeys(("tp", "pp", "vpp", "dp", "cp", "ep", "etp", "microbatch", "batch"), DEGREES),
    zero=st.integers(0, 3),
    sp=st.booleans(),
    schedule=st.sampled_from(("1f1b", "interleaved", "zero-bubble", "dualpipe")),
    recompute=st.sampled_from(("none", "selective", "full")),
    selective=st.lists(st.sampled_from(DROPS), unique=True).map(tuple),
    overlap=st.sampled_from(("none", "usual", "all-to-all", "dualpipe")),
    order=st.sampled_from(("tp-cp-ep-dp-pp", "tp-cp-ep-pp-dp")),
    split=st.sampled_from(("even", "full", "balanced"))
    | st.lists(st.integers(0, 90), min_size=1).map(tuple),
)
MAYBE = st.none() | st.floats(0.001, 1e6)
OVERHEADS = st.builds(Overheads) | st.builds(
    Overheads, framework=st.floats(0, 1e11), fragmentation=st.floats(0, 0.99)
)
TRAINING = st.builds(
    TrainingJob,
    sequence=st.integers(1, 10**7),
    tokens=st.none() | st.integers(1, 10**17),
    precision=st.sampled_from(("bf16", "fp8")),
    kept=st.sampled_from(("bf16", "fp8")),
    policy=st.sampled_from(("copies", "per-gpu", "per-node")),
    imbalance=st.floats(1, 50),
    mtp=st.booleans(),
    account=st.sampled_from(("index-map", "megatron-core")),
    price=MAYBE | st.just("$2/h"),
    power=MAYBE,
    overheads=OVERHEADS,
)
SERVING = st.builds(
    ServingJob,
    input=st.integers(1, 10**7),
    cached=st.floats(0, 0.99),
    batch=st.none() | st.integers(1, 10**6),
    tpot=MAYBE,
    disaggregated=st.booleans(),
    draft=st.integers(0, 8),
    weights=st.none() | st.just("fp8"),
    decode_policy=st.sampled_from(("copies", "per-gpu", "per-node")),
    overlap=st.floats(0, 1),
    overheads=OVERHEADS,
)
SERVED = st.builds(Chosen, WORDS, WORDS, LAYOUTS, SERVING, instances=st.integers(1, 999)) | (
    st.builds(Chosen, WORDS, WORDS, LAYOUTS, SERVING, LAYOUTS, DEGREES, DEGREES)
)
CHOSEN = SERVED | st.builds(Chosen, WORDS, WORDS, LAYOUTS, TRAINING)


@given(CHOSEN)
def test_a_file_reads_back_as_what_was_written(tmp_path_factory, chosen):
    path = tmp_path_factory.getbasetemp() / "plan.toml"
    chosen.save(path)
    found = Chosen.load(path)
    assert found == chosen
    for a, b in zip(found.layouts, chosen.layouts, strict=True):  # not through document()
        assert all(getattr(a, f.name) == getattr(b, f.name) for f in fields(Layout))
    for f in fields(chosen.job):
        if f.name != "overheads":
            assert getattr(found.job, f.name) == getattr(chosen.job, f.name)
    assert plain(found.job.overheads.framework) == plain(chosen.job.overheads.framework)


TRAINED = Chosen(
    "mixtral",
    "h100x64",
    Layout.parse("pp=4,ep=8,batch=256", gpus=64),
    TrainingJob(tokens=10**12, stack="kernels"),
)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "plan.toml"
    TRAINED.save(path)
    return path


def test_what_a_search_gives_may_be_numpy(file):
    layout = TRAINED.layout.at({"tp": np.float64(2), "dp": np.float64(8)})
    chosen = Chosen("mixtral", "h100x64", layout, TrainingJob(tokens=np.float64(1e12)))
    chosen.save(file)
    assert "tp = 2 " in file.read_text()
    assert Chosen.load(file) == chosen
    assert chosen.gpus == 64


def test_units_and_defaults_may_be_written_by_hand(file):
    file.write_text(
        'moeplan_plan = 1\nmodel = "mixtral"\ncluster = "h100x8"\n'
        '[layout]\nep = 8\ndp = 8\n[serving]\ntpot = "50 ms"\ninput = "4k"\nframework = "3 GB"\n'
    )
    found = Chosen.load(file)
    assert (found.job.tpot, found.job.input, found.job.overheads.framework) == (0.05, 4000, 3e9)
    assert plain(found.job.overheads.fragmentation) == plain(Overheads().fragmentation)
    assert found.layout.batch == 8


def test_every_key_says_what_it_is(file):
    lines = [x for x in file.read_text().splitlines() if " = " in x.partition("#")[0]]
    assert len(lines) > 25
    assert all("# " in line for line in lines)


BROKEN = [
    ("tp = 1 ", "tpp = 1 ", "unknown key 'layout.tpp' (did you mean 'tp'?)"),
    ('model = "mixtral"', "", "model is missing"),
    ("moeplan_plan = 1", "moeplan_plan = 2", "moeplan_plan = 2 is a newer form"),
    ("moeplan_plan = 1", "", "moeplan_plan is None"),
    ("pp = 4 ", 'pp = "4" ', "layout.pp is '4', and must be a valid integer"),
    ("pp = 4 ", "pp = 0 ", "layout: pp=0 must be a whole number"),
    ('schedule = "1f1b"', 'schedule = "1f1"', "(did you mean '1f1b'?)"),
    ('stack = "kernels"', 'stack = "kernel"', "training.stack 'kernel' is not known"),
    ("imbalance = 1.0", "imbalance = 0.5", "training.imbalance is 0.5"),
    (
        "sequence = 4096",
        'sequence = "4 parsecs"',
        "training.sequence: cannot read '4 parsecs' as count",
    ),
    ("sequence = 4096", "sequence = [1]", "training.sequence is [1], and must be"),
    ("[training]", "[trainin]", "did you mean 'training'?"),
    ("[training]", "[training", "not valid TOML"),
    ("[layout]", "instances = 2\n[layout]", "instances and a prefill layout are for serving"),
    ("[layout]", "prefill_instances = 2\n[layout]", "prefill_instances is 2"),
]


@pytest.mark.parametrize(("old", "new", "said"), BROKEN)
def test_a_wrong_file_is_refused_by_file_and_key(file, old, new, said):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError) as caught:
        Chosen.load(file)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


def test_no_file_and_no_place_to_write(tmp_path):
    with pytest.raises(UserError, match="no such plan file"):
        Chosen.load(tmp_path / "none.toml")
    with pytest.raises(UserError, match="cannot be written"):
        TRAINED.save(tmp_path / "nowhere" / "plan.toml")


def test_a_plan_that_does_not_fill_its_cluster_says_the_product(file):
    file.write_text(file.read_text().replace("h100x64", "h100x128"))
    with pytest.raises(UserError, match=r"tp\*cp\*pp\*dp = 1\*1\*4\*16 = 64 must be the 128 GPUs"):
        Chosen.load(file).answer()
    pool = Chosen("mixtral", "h100x8", Layout.parse("tp=8"), ServingJob(), instances=2)
    with pytest.raises(UserError, match=r"2 x tp\*cp\*pp\*dp = 8\*1\*1\*1 = 16 GPUs, and cluster"):
        pool.answer()


def test_two_pools_serve_what_the_slower_one_does():
    job = ServingJob(input=4000, output=1000, disaggregated=True)
    small, large = Layout.parse("tp=4,ep=4"), Layout.parse("tp=2,dp=4,ep=8")

    def rate(instances, prefill_instances):
        gpus = 8 * instances + 4 * prefill_instances
        chosen = Chosen(
            "mixtral", f"h100x{-(-gpus // 8) * 8}", large, job, small, instances, prefill_instances
        )
        return chosen.answer()["pool"]

    one, many = rate(1, 1), rate(3, 1)
    assert many["decode_requests_per_second"] == pytest.approx(
        3 * one["decode_requests_per_second"]
    )
    assert many["prefill_requests_per_second"] == pytest.approx(one["prefill_requests_per_second"])
    for found in (one, many):
        names = ("prefill_requests_per_second", "decode_requests_per_second")
        assert found["requests_per_second"] == min(found[name] for name in names)
    json.dumps(many, allow_nan=False)


def test_the_documented_plan_is_what_is_written_today(root, tmp_path):
    shown = root / "docs" / "examples" / "plan.toml"
    Chosen.load(shown).save(tmp_path / "plan.toml")
    assert (tmp_path / "plan.toml").read_text() == shown.read_text()
