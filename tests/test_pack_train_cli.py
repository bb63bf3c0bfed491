"""The way of a pack, as a user walks it: init, train, verify, eval, use; and what it says when something is wrong."""

import json

import pytest
from tiny_bases import random_weights, write_hf
from tiny_text import TEMPLATE, write_jsonl

from mbjax.cli.main import run


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A folder with a tiny base and a pack trained on it by the commands."""
    folder = tmp_path_factory.mktemp("workshop")
    base = write_hf(folder / "tiny", random_weights())
    settings = {"eos_token": "<|im_end|>", "chat_template": TEMPLATE}
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MBJAX_HOME", str(folder / "home"))
        patch.chdir(folder)
        assert run(["pack", "init", "metres"]) == 0
        config = folder / "metres" / "pack.toml"
        text = (
            config.read_text().replace('base = "smollm2-135m"', f'base = "{base}"').replace("steps = 60", "steps = 6")
        )
        text = text.replace("validate_every = 20", "validate_every = 3")
        config.write_text(text.replace("learning_rate = 2e-3", "learning_rate = 1e-1"))
        for name in ("train", "valid", "test"):  # a few lines of each: the tiny base has one token per byte
            lines = (folder / "metres" / f"{name}.jsonl").read_text().splitlines(keepends=True)
            (folder / "metres" / f"{name}.jsonl").write_text("".join(lines[:24]))
        assert run(["pack", "train", "metres/pack.toml", "--out", "packs/metres"]) == 0
        yield folder, str(base)


def refused(capsys, status: int, *arguments: str) -> str:
    assert run(list(arguments)) == status
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("mbjax: ")]
    assert out == "" and len(lines) == 1, err
    return lines[0]


def test_training_leaves_pack_report_and_curve(workshop, capsys):
    folder, _ = workshop
    assert run(["pack", "verify", "packs/metres", "--json"]) == 0
    (pack,) = json.loads(capsys.readouterr().out)["packs"]
    assert (pack["id"], pack["problems"]) == ("metres", [])
    assert (folder / "runs/metres/loss.png").read_bytes().startswith(b"\x89PNG")
    assert "best validation loss" in (folder / "runs/metres/report.md").read_text()
    log = [json.loads(line) for line in (folder / "runs/metres/log.jsonl").read_text().splitlines()]
    assert [event["step"] for event in log if "valid_loss" in event] == [3, 6]


def test_prompts_of_the_route_that_are_not_there_are_missed_before_training(workshop, capsys):
    folder, _ = workshop
    config = folder / "metres" / "unrouted.toml"
    text = (folder / "metres" / "pack.toml").read_text()
    config.write_text(
        text.replace('train = "train.jsonl"', 'train = "train.jsonl"\nroute_against = ["small_talk.jsonl"]')
    )
    line = refused(capsys, 2, "pack", "train", "metres/unrouted.toml", "--out", "packs/unrouted", "--work", "runs/un")
    assert "small_talk.jsonl" in line
    assert not (folder / "packs/unrouted").exists() and not (folder / "runs/un").exists()
    config.unlink()  # the folder is one of recipes, too


def test_recipes_make_router_and_packs_for_another_base(workshop, capsys):
    folder, base = workshop
    command = [
        "train",
        "packs",
        "--base",
        base,
        "--configs",
        "metres",
        "--out",
        "remade",
        "--work",
        "runs/remade",
    ]
    assert run([*command, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)["made"]
    assert made == [{"path": "remade/router", "new": True}, {"path": "remade/metres", "new": True}]
    same = [(folder / where / "metres" / "pack.safetensors").read_bytes() for where in ("packs", "remade")]
    assert len(same[0]) <= len(same[1]), "the route key comes with a router"
    capsys.readouterr()
    assert run(["pack", "verify", "remade/router", "remade/metres", "--json"]) == 0
    out, err = capsys.readouterr()
    assert [pack["id"] for pack in json.loads(out)["packs"]] == ["metres"] and "a router, no pack" in err
    assert run([*command, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)["made"]
    assert made == [{"path": "remade/router", "new": False}, {"path": "remade/metres", "new": False}]
    assert "no configuration of a pack 'feet'" in refused(capsys, 2, *command, "--only", "feet")
    assert "holds no configuration" in refused(capsys, 2, *command[:4], "--configs", "packs")


def test_scores_are_measured_and_written(workshop, capsys):
    folder, base = workshop
    command = ["pack", "eval", "packs/metres", "metres/test.jsonl", "--base", base, "--write", "--json"]
    assert run(command) == 0
    (score,) = json.loads(capsys.readouterr().out)["scores"]
    assert (score["metric"], score["n"]) == ("exact_match", 24)
    written = json.loads((folder / "packs/metres/scores.json").read_text())
    assert written["scores"] == [score]
    lines = (folder / "metres/test.jsonl").read_text().splitlines()
    write_jsonl(folder / "more.jsonl", [{**json.loads(line), "task": "more"} for line in lines])
    assert run(["pack", "eval", "packs/metres", "more.jsonl", "--base", base, "--limit", "5", "--write", "--json"]) == 0
    (more,) = json.loads(capsys.readouterr().out)["scores"]
    assert (more["task"], more["n"]) == ("more", 5)
    written = json.loads((folder / "packs/metres/scores.json").read_text())
    assert written["scores"] == [score, more], "another task's scores stay"
    assert "## Scores" in (folder / "packs/metres/README.md").read_text()


def test_a_pack_is_used_by_name_and_shown_in_the_route(workshop, capsys):
    _, base = workshop
    command = ["generate", "12 metres in cm?", "--base", base, "-n", "4", "--json"]
    routes, texts = [], []
    for pack in ("none", "metres"):
        assert run([*command, "--pack", pack]) == 0
        reply = json.loads(capsys.readouterr().out)
        routes.append(reply["route"])
        texts.append(reply["tokens"])
    assert routes == [[], [{"pack": "metres", "gate": 1.0, "score": None, "part": 0}]]
    assert texts[0] != texts[1]


def test_a_pack_of_another_base_is_refused_unless_forced(workshop, capsys):
    folder, _ = workshop
    other = write_hf(folder / "other", random_weights(seed=1))
    (other / "tokenizer_config.json").write_text((folder / "tiny/tokenizer_config.json").read_text())
    command = ["generate", "hi", "--base", str(other), "-n", "2", "--pack", "metres"]
    assert "--force-base" in refused(capsys, 2, *command)
    assert run([*command, "--force-base"]) == 0
    scored = ["pack", "eval", "packs/metres", "metres/test.jsonl", "--base", str(other), "--force-base", "--write"]
    assert run(scored) == 0  # with scores measured there it is compatible, and no force is needed
    assert run(command) == 0


def test_unknown_packs_and_wrong_configurations_are_one_line(workshop, capsys):
    folder, base = workshop
    assert "no pack 'metre'" in refused(capsys, 2, "generate", "hi", "--base", base, "--pack", "metre")
    assert "exists already" in refused(capsys, 2, "pack", "init", "metres")
    assert "no such file" in refused(capsys, 2, "pack", "train", "none.toml")
    (folder / "wrong.toml").write_text('id = "x"\n[data]\ntrain = "a"\nvalid = "b"\n[loop]\nstep = 3\n')
    assert "did you mean 'steps'" in refused(capsys, 2, "pack", "train", "wrong.toml")
    (folder / "wrong.toml").write_text('id = "x"\nquantise_aware = "int2"\n[data]\ntrain = "a"\nvalid = "b"\n')
    assert "quantise_aware must be one of int8, int4" in refused(capsys, 2, "pack", "train", "wrong.toml")


def test_wrong_data_stops_before_anything_is_written(workshop, capsys):
    folder, base = workshop
    write_jsonl(folder / "bad.jsonl", [{"prompt": "a", "answer": "b"}, {"prompt": "a"}])
    config = f'id = "bad"\nbase = "{base}"\n[data]\ntrain = "bad.jsonl"\nvalid = "bad.jsonl"\n'
    (folder / "bad.toml").write_text(config)
    assert "line 2: field 'answer'" in refused(capsys, 2, "pack", "train", "bad.toml")
    assert not (folder / "packs/bad").exists()
    assert not (folder / "runs/bad").exists()


def test_what_cannot_be_written_is_told_before_training(workshop, capsys):
    folder, _ = workshop
    text = (folder / "metres/pack.toml").read_text()
    (folder / "metres/unnamed.toml").write_text(text.replace('licence = "Apache-2.0"', 'licence = ""'))
    assert "licence" in refused(capsys, 2, "pack", "train", "metres/unnamed.toml", "--out", "packs/unnamed")
    (folder / "file").write_text("")
    refused(capsys, 2, "pack", "train", "metres/pack.toml", "--out", "file/metres", "--work", "runs/elsewhere")
    assert not (folder / "runs/elsewhere").exists()


def test_another_configuration_does_not_continue_a_run(workshop, capsys):
    folder, _ = workshop
    text = (folder / "metres/pack.toml").read_text().replace("rank = 16", "rank = 8")
    (folder / "metres/other.toml").write_text(text)
    command = ("pack", "train", "metres/other.toml", "--out", "packs/other", "--work", "runs/metres")
    assert "another configuration" in refused(capsys, 2, *command)
