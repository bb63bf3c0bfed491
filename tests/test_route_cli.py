"""`mbjax train router`, `mbjax pack calibrate` and `mbjax route`, as a user runs them, on a tiny base."""

import json
import shutil

import numpy as np
import pytest
from test_packs import lora_pack
from tiny_bases import CONFIG, random_weights, write_hf
from tiny_router import BACKGROUND, SHOUTS, SUMS, write_prompts
from tiny_text import TEMPLATE

from mbjax.cli.main import run
from mbjax.io.load import load_base
from mbjax.io.pack_dir import About, read_pack, write_pack
from mbjax.io.pack_load import binding


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a base, a pack, and prompts; MBJAX_HOME beside them."""
    root = tmp_path_factory.mktemp("route")
    directory = write_hf(root / "tiny", random_weights())
    settings = {"eos_token": "<|im_end|>", "chat_template": TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    write_prompts(root / "background.jsonl", BACKGROUND)
    write_prompts(root / "sums.jsonl", SUMS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MBJAX_HOME", str(root / "home"))
        base = load_base(directory)
        pack = lora_pack(CONFIG, targets=("q", "down"))
        about = About("sums", "Sums", "1.0.0", binding(base), "Apache-2.0", "tests")
        write_pack(root / "packs" / "sums", pack, about, card="# Sums\n")
        train = ["train", "router", "--base", str(directory), "--background", str(root / "background.jsonl")]
        assert run([*train, "--out", str(root / "packs" / "router")]) == 0
        calibrate = ["pack", "calibrate", str(root / "packs" / "sums"), "--prompts", str(root / "sums.jsonl")]
        assert run([*calibrate, "--base", str(directory)]) == 0
        yield root


def document(capsys) -> dict:
    return json.loads(capsys.readouterr().out)


def refused(capsys, *arguments: str) -> str:
    assert run(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("mbjax: ") and err.count("\n") == 1, err
    return err


def test_the_router_is_reported(capsys, place):
    arguments = ["train", "router", "--base", str(place / "tiny"), "--background", str(place / "background.jsonl")]
    assert run([*arguments, "--out", str(place / "again"), "--json"]) == 0
    made = document(capsys)
    assert made["n"] == len(dict.fromkeys(BACKGROUND)) and made["width"] == CONFIG.d_model
    one, other = ((place / where / "router.safetensors").read_bytes() for where in ("again", "packs/router"))
    assert one == other
    assert read_pack(place / "packs" / "sums").route.background_digest == made["background_digest"]


def test_route_tells_the_packs_of_each_line_and_how_often_that_is_right(capsys, place):
    path = place / "asked.jsonl"
    lines = [{"prompt": p, "domain": "sums"} for p in SUMS[1:7]] + [
        {"prompt": p, "domain": None} for p in BACKGROUND[:4]
    ]
    lines.append({"messages": [{"role": "user", "content": SHOUTS[1]}], "domains": ["sums"]})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ["route", str(path), "--base", str(place / "tiny"), "--packs", str(place / "packs")]
    assert run([*arguments, "--json"]) == 0
    found = document(capsys)
    assert set(found) == {"items", "summary"} and len(found["items"]) == len(lines)
    assert all(set(entry) == {"pack", "gate", "score", "part"} for item in found["items"] for entry in item["route"])
    right = [item["correct"] for item in found["items"]]
    assert found["summary"]["accuracy"] == np.mean(right) and right[-1] is False and np.mean(right[:-1]) >= 0.8
    assert found["summary"]["domains"]["none"]["n"] == 4 and sum(found["summary"]["counts"].values()) == len(lines)
    assert run(arguments) == 0
    printed = capsys.readouterr().out
    assert "sums:" in printed and "(wrong)" in printed and "right" in printed


def test_generate_uses_the_router(capsys, place):
    arguments = ["generate", SUMS[3], "--base", str(place / "tiny"), "--packs", str(place / "packs"), "-n", "2"]
    assert run([*arguments, "--json"]) == 0
    route = document(capsys)["route"]
    assert [entry["pack"] for entry in route] == ["sums"] and 0.5 < route[0]["score"] <= 1
    assert run(arguments) == 0
    assert "score" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "reason"),
    [("{", "not JSON"), ('{"text": "t"}', "needs"), ('{"prompt": "p", "domain": 3}', "domain"), ("", "holds no line")],
)
def test_a_wrong_line_is_named(capsys, place, line, reason):
    path = place / "wrong.jsonl"
    path.write_text(line + "\n")
    assert reason in refused(capsys, "route", str(path), "--base", "no/such/base")


def test_what_calibrate_refuses(capsys, place):
    few = write_prompts(place / "few.jsonl", SUMS[:3])
    pack, base = str(place / "packs" / "sums"), ["--base", str(place / "tiny")]
    assert "too small" in refused(capsys, "pack", "calibrate", pack, "--prompts", str(few), *base)
    alone = shutil.copytree(place / "packs" / "sums", place / "alone" / "sums")
    sums = ["--prompts", str(place / "sums.jsonl")]
    assert "no such directory" in refused(capsys, "pack", "calibrate", str(alone), *sums, *base)
    assert "no such file" in refused(capsys, "pack", "calibrate", pack, "--prompts", "none.jsonl", *base)
    few_background = ["--background", str(few), "--out", str(place / "no-router")]
    assert "too few" in refused(capsys, "train", "router", *base, *few_background)
