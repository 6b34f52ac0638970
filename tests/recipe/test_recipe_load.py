"""Reading recipes: what is accepted, and that each mistake is one line that names the key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ikirere.errors import UserError
from ikirere.recipe.load import dump, load_recipe, parse_recipe, to_plain
from ikirere.recipe.yamlio import dump_yaml, parse

RECIPES = Path(__file__).parents[2] / "recipes"
SMALL = Path(__file__).with_name("small.yaml")
FULL = ["demo", "irm-2b", "nanollama-1b", "smol-100m-kda", "smol-100m-trm", "modern-lm"]
ALL = sorted(RECIPES.rglob("*.yaml"))


def refused(*overrides: str, path: Path = SMALL) -> list[str]:
    """The lines of the refusal."""
    with pytest.raises(UserError) as caught:
        load_recipe(path, list(overrides))
    return str(caught.value).splitlines()


def write(folder: Path, text: str) -> Path:
    path = folder / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_six_programmes_are_there() -> None:
    assert {path.stem for path in RECIPES.glob("*.yaml")} == set(FULL)


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_every_recipe_loads_and_survives_its_own_dump(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    assert load_recipe(write(tmp_path, dump(recipe))) == recipe


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_every_key_has_a_comment(path: Path) -> None:
    bare = []
    previous = ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        code = line.strip()
        starts_key = re.match(r"(- )?[\w-]+:( |$)|- \{", code)
        if starts_key and " #" not in line and not previous.startswith("#"):
            bare.append(f"{number}: {line}")
        previous = code
    assert bare == []


def test_overrides_set_scalars_lists_and_new_keys() -> None:
    recipe = load_recipe(
        SMALL,
        [
            "pretrain.phases.0.steps=50",
            "seed=3",
            "model.rope_theta=5e5",
            "pretrain.compile=on",
            "data.sources.0.include=[docs]",
            "pretrain.phases.0.mixture={docs: 1}",
            "serve.max_model_len=128",
            "name=a=b".replace("=b", "-b"),
        ],
    )
    assert recipe.pretrain.phases[0].steps == 50
    assert recipe.seed == 3
    assert recipe.model.rope_theta == 500_000.0
    assert recipe.pretrain.compile == "on"
    assert recipe.pretrain.phases[0].mixture == {"docs": 1.0}
    assert recipe.serve.max_model_len == 128
    assert recipe.name == "a-b"


@pytest.mark.parametrize(
    ("override", "key", "says"),
    [
        ("pretrain.phases.0.stps=50", "pretrain.phases.0.stps", "did you mean steps?"),
        ("modell={}", "modell", "did you mean model?"),
        ("data.sources.0.inclde=[code]", "data.sources.0.inclde", "did you mean include?"),
        ("data.sources.0.kind=hubb", "data.sources.0", "did you mean hub?"),
        ("data.sources.0.include=[prose]", "data.sources.0.include.0", "one of code, docs"),
        ("model.hidden_size=wide", "model.hidden_size", "a whole number > 0"),
        ("model.hidden_size=1.5", "model.hidden_size", "a whole number > 0"),
        ("model.qk_norm=1", "model.qk_norm", "true or false"),
        ("seed=true", "seed", "got true"),
        ("seed=.nan", "seed", "a whole number"),
        ("pretrain.optimizer.lr=-1", "pretrain.optimizer.lr", "a number > 0"),
        ("pretrain.optimizer.lr=.inf", "pretrain.optimizer.lr", "a number > 0"),
        ("pretrain.optimizer.betas=[0.9]", "pretrain.optimizer.betas.1", "missing"),
        ("pretrain.optimizer.betas=[0.9, 1]", "pretrain.optimizer.betas.1", ">= 0 and < 1"),
        ("dpo.optimizer.eps=-1", "dpo.optimizer.eps", "a number >= 0"),
        ("pretrain.precision=bf17", "pretrain.precision", "one of auto, fp32, bf16, fp16, fp8"),
        ("data.heldout=2", "data.heldout", ">= 0 and <= 1"),
        ("pretrain=null", "pretrain", "a mapping"),
        ("data.sources=[]", "data.sources", "empty list"),
        ("gates.evaluate.0.op=about", "gates.evaluate.0.op", "one of >=, <=, >, <, =="),
        ("name=Not A Name", "name", "matching"),
        ("model.num_attention_heads=3", "model", "256 is not divisible by num_attention_heads 3"),
        ("model.num_key_value_heads=3", "model", "4 is not divisible by num_key_value_heads 3"),
        ("model.layer_pattern=kdb*3 full", "model", "'kdb' is no mixer of family decoder; accepted are full"),
        ("model.layer_pattern=full*x", "model", "is not NAME or NAME*COUNT"),
        ("model.mixers={kda: {head_dm: 3}}", "model", "mixers.kda.head_dm"),
        ("stages=[data, data, evaluate]", "stages", "each stage once"),
        ("gates.nowhere=[]", "gates.nowhere", "no such stage"),
        ("planned.nowhere={}", "planned.nowhere", "no such stage"),
        ("dpo=null", "dpo", "the stage is listed"),
        ("pretrain.phases.0.mixture={poems: 1}", "pretrain.phases.0.mixture", "no source gives the domain poems"),
        ("pretrain.phases.0.attention=kdb", "pretrain.phases.0.attention", "'kdb' is no mixer"),
        ("pretrain.phases.0.sequence_length=1025", "pretrain.phases.0.sequence_length", "beyond the 1,024 of model"),
        ("sft.sequence_length=1025", "sft.sequence_length", "beyond the 1,024 of model.max_position_embeddings"),
        ("dpo.sequence_length=1025", "dpo.sequence_length", "beyond the 1,024 of model.max_position_embeddings"),
        ("serve.max_model_len=1025", "serve.max_model_len", "beyond the 1,024 of model.max_position_embeddings"),
        ("tokenizer.vocab_size=4097", "model.vocab_size", "4,096 rows are fewer than the 4,097 ids"),
        ("pretrain.milestones=[{name: a, step: 401}]", "pretrain.milestones.0.step", "after the last of 400 steps"),
        ("pretrain.milestones=[{name: a/b, step: 4}]", "pretrain.milestones.0.name", "matching"),
        ("pretrain.milestones=[{name: a, step: 1}, {name: a, step: 2}]", "pretrain.milestones.1.name", "its own"),
        ("pretrain.milestones=[{name: a, step: 4, compare_to: b}]", "milestones.0.compare_to", "there is none"),
        ("pretrain.milestones=[{name: a, step: 2, compare_to: a}]", "milestones.0.compare_to", "there is none"),
        (
            "pretrain.milestones=[{name: a, step: 2}, {name: b, step: 4, compare_to: c}]",
            "milestones.1.compare_to",
            "no milestone 'c' before step 4; earlier ones are a",
        ),
        ("pretrain.phases.7.steps=1", "pretrain.phases", "index from 0 to 0"),
        ("name.first=x", "name", "it has no keys below it"),
        ("steps", "steps", "key.path=value"),
        ("a..b=1", "a..b", "key.path=value"),
        ("seed=[1", "seed", "not YAML"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_key_and_accepted_values(override: str, key: str, says: str) -> None:
    lines = refused(override)
    assert len(lines) == 1
    assert key in lines[0]
    assert says in lines[0]


def test_several_mistakes_are_several_lines_with_their_places(tmp_path: Path) -> None:
    text = SMALL.read_text(encoding="utf-8").replace("hidden_size: 256", "hiden_size: 256")
    lines = refused("seed=x", "dpo.beta=0", path=write(tmp_path, text))
    number = text[: text.index("hiden_size")].count("\n") + 1
    assert len(lines) == 4
    assert any(
        line.startswith(f"{tmp_path / 'r.yaml'}:{number}: model.hiden_size: unknown key") for line in lines
    )
    assert any("model.hidden_size: missing" in line for line in lines)
    assert any(line.startswith("override 'seed=x': seed: got 'x'") for line in lines)
    assert any(line.startswith("override 'dpo.beta=0': dpo.beta: got 0") for line in lines)


@pytest.mark.parametrize(
    "override",
    [
        *(f"{key}=1024" for key in ("pretrain.phases.0.sequence_length", "sft.sequence_length",
          "dpo.sequence_length", "serve.max_model_len")),
        "model.vocab_size=4096",
        "pretrain.milestones=[{name: b, step: 400, compare_to: a}, {name: a, step: 399}]",
        "pretrain.optimizer.betas=[0, 0.999]",
    ],
)  # fmt: skip
def test_what_just_fits_is_accepted(override: str) -> None:
    load_recipe(SMALL, [override])


def test_keys_that_do_not_fit_together_are_named_with_their_lines() -> None:
    lines = refused("model.max_position_embeddings=200", "stages=[data, sft, dpo]")
    number = SMALL.read_text(encoding="utf-8").splitlines().index("  evaluate:") + 1
    assert lines[0].startswith(f"{SMALL}:{number}: gates.evaluate: no such stage")
    assert [line.split(": ")[1] for line in lines[1:]] == [
        "pretrain.phases.0.sequence_length",
        "sft.sequence_length",
        "dpo.sequence_length",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: a\nname: b\n", ":2: name is given twice (first on line 1)"),
        ("model:\n  a: 1\n  a: 2\n", ":3: model.a is given twice (first on line 2)"),
        ("a: [1,\nb: 2", ":2: not YAML"),
        ("a: 'x", "not YAML"),
        ("- a\n", "this file holds a list"),
        ("", "this file holds nothing"),
        ("a: &x [*x]", "contains itself"),
        ("a: !!python/name:os.system x", "write plain YAML values"),
        ("a: 1\nb: !!set {x}", ":2: a list or mapping with the tag"),
        ("a: !!int x", ":1: 'x' with the tag"),
        ("\x01", ":1: not YAML"),
        ("a: 1\nb: \x01", ":2: not YAML"),
        ("? [1]\n: 2", "a key must be a word"),
        ("a: 1\n---\nb: 2", "not YAML"),
        ("extends: 3", "give the path of another recipe"),
        ("extends: r.yaml", "extends itself"),
        ("extends: gone.yaml", "gone.yaml: no such file"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, text: str, says: str) -> None:
    lines = refused(path=write(tmp_path, text))
    assert len(lines) == 1
    assert says in lines[0]
    assert str(tmp_path) in lines[0]


def test_missing_folder_and_binary_files(tmp_path: Path) -> None:
    assert refused(path=tmp_path / "none.yaml")[0].startswith(f"{tmp_path / 'none.yaml'}: no such file")
    assert "directory" in refused(path=tmp_path)[0]
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"\xff\x00")
    assert "not UTF-8" in refused(path=binary)[0]


def test_extends_merges_mappings_replaces_lists_and_takes_away(tmp_path: Path) -> None:
    text = f"extends: {SMALL}\nname: other\nmodel: {{hidden_size: 128}}\ndpo: null\n"
    text += "stages: [data, tokenizer]\ngates: null\n"
    recipe = load_recipe(write(tmp_path, text))
    base = load_recipe(SMALL)
    assert recipe.name == "other"
    assert recipe.model == base.model.model_copy(update={"hidden_size": 128})
    assert recipe.stages == ("data", "tokenizer")
    assert recipe.dpo is None
    assert recipe.gates == {}
    assert recipe.data == base.data


def test_mistakes_below_extends_name_the_file_that_made_them(tmp_path: Path) -> None:
    path = write(tmp_path, f"extends: {SMALL}\nmodel:\n  hidden_size: no\n")
    assert refused(path=path)[0].startswith(f"{path}:3: model.hidden_size: got 'no'")


def test_yaml_means_what_a_recipe_means() -> None:
    text = "a: on\nb: 1e-4\nc: 1_000\nd: yes\ne: ~\nf: '1'\ng: 0.5\nh: 2026-01-01\ni: TRUE\nj: =\n<<: x\n"
    assert parse(text, "x").value == {
        "a": "on",
        "b": 1e-4,
        "c": 1000,
        "d": "yes",
        "e": None,
        "f": "1",
        "g": 0.5,
        "h": "2026-01-01",
        "i": True,
        "j": "=",
        "<<": "x",
    }


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(), trees, max_size=5))
def test_dump_then_parse_gives_the_same_values(values: dict[str, object]) -> None:
    again = parse(dump_yaml(values), "x").value
    assert again == values
    assert repr(again) == repr(values)


json_trees = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(
    description=st.text(),
    seed=st.integers(-(2**63), 2**63),
    lr=st.floats(1e-12, 10, exclude_min=True),
    steps=st.integers(1, 10**12),
    planned=st.dictionaries(st.text(), json_trees, max_size=3),
    notes=st.lists(st.text(), max_size=3),
)
def test_dump_then_load_gives_an_equal_recipe(
    description: str, seed: int, lr: float, steps: int, planned: dict[str, object], notes: list[str]
) -> None:
    values = to_plain(load_recipe(SMALL))
    values |= {"description": description, "seed": seed, "planned": {"report": planned}}
    values["pretrain"]["optimizer"]["lr"] = lr
    values["pretrain"]["phases"][0]["steps"] = steps
    values["stated"]["notes"] = notes
    recipe = parse_recipe(values)
    assert parse_recipe(parse(dump(recipe), "x").value) == recipe


@pytest.mark.parametrize(
    ("override", "new"),
    [
        ("serve.slots=4", "serve.slots: was renamed; write max_num_seqs instead"),
        ("serve.context=128", "serve.context: was renamed; write max_model_len instead"),
        (
            "data.near_duplicates.rows=5",
            "data.near_duplicates.rows: was renamed; write rows_per_band instead",
        ),
        ("model.mixers.hybrid.local_chunk=64", "hybrid.local_chunk: was renamed; write window instead"),
        (
            "model.mixers.hybrid.global_stride=64",
            "hybrid.global_stride: was renamed; write block_size instead",
        ),
        (
            "model.mixers.hybrid.global_tokens=learned_summaries",
            "hybrid.global_tokens: was removed; leave it out: each block always has a learned summary",
        ),
        (
            "model.mixers.hybrid.streaming_links=ring",
            "hybrid.streaming_links: was removed; leave it out: context parallelism always passes blocks around a ring",
        ),
    ],
)
def test_an_old_key_is_answered_with_what_holds_today(override: str, new: str) -> None:
    with pytest.raises(UserError) as error:
        load_recipe(SMALL, [override])
    assert new in str(error.value)


def test_sharing_a_sequence_among_devices_is_no_part_of_the_result() -> None:
    plain, shared = (
        load_recipe(SMALL, [f"pretrain.phases.0.context_parallel={n}", "pretrain.phases.0.steps=400"])
        for n in (1, 2)
    )
    assert plain.pretrain != shared.pretrain
    assert plain.pretrain.result_settings() == shared.pretrain.result_settings()
