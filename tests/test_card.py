"""The measuring program of a card, on the tiny shape and the CPU: that it measures, keeps, goes on and reports."""

import argparse
import json

import card_decode
import card_run
import pytest
from card_cells import CARD_SHAPES, Cell, all_cells
from card_child import Notes
from card_report import derived, page, summary
from card_run import Results, run_cells

from mbjax.errors import InputError

OPTIONS = {"limit_gib": 4.0, "seconds": float("inf"), "ahead": 2, "base": None, "retry": False}
RATES = Cell("rates", "tiny", warm=False)
BROKEN = Cell("decode", "nowhere", "bfloat16", 1, warm=False)  # a shape that the child does not know


def run(path, cells, **changed):
    run_cells(cells, Results(path), argparse.Namespace(**OPTIONS | changed))
    return Results(path).cells


def test_a_failing_cell_leaves_the_others_and_only_a_retry_starts_it_again(tmp_path, monkeypatch):
    cells = run(tmp_path / "card.json", [BROKEN, RATES])
    assert "KeyError: 'nowhere'" in cells[BROKEN.name]["error"]
    rates = cells[RATES.name]
    assert "error" not in rates and rates["memory"]["read"] > 0 and rates["matrix"]["64"]["flops"] > 0
    started = []
    monkeypatch.setattr(card_run.Child, "start", lambda cell, *rest: started.append(cell.name) or pytest.skip())
    assert run(tmp_path / "card.json", [BROKEN, RATES]) == cells and not started
    with pytest.raises(pytest.skip.Exception):
        run(tmp_path / "card.json", [BROKEN, RATES], retry=True)
    assert started == [BROKEN.name]


def test_what_runs_out_of_time_leaves_what_it_has(tmp_path):
    found = run(tmp_path / "card.json", [Cell("rates", "tiny", warm=False, seconds=0)])["rates:tiny"]
    assert found["error"] == "ended after 0 s"
    assert run(tmp_path / "none.json", [RATES], seconds=1.0) == {}


def test_decoding_prefill_and_memory_are_measured(tmp_path):
    cell = Cell("decode", "tiny", "int8", 1)
    card_decode.measure(cell, Notes(tmp_path / "result.json"))
    found = json.loads((tmp_path / "result.json").read_text())
    assert not card_run.failed(found)
    assert all(found[f"decode_{n}"]["compilations"] == 0 for n in range(3))
    memory = found["memory"]
    assert memory["account"] == sum(memory["components"].values()) and memory["peak_bytes_in_use"] is None
    assert found["base_bytes"] == memory["components"]["base"] == found["read_bytes"]
    cells = {cell.name: found, "rates": {"memory": {"read": 1e10}, "matrix": {"64": {"flops": 1e9}}}}
    share = derived(cells)[cell.name]["decode_2"]["share"]
    needed = found["base_bytes"] + 2 * found["pack_bytes"] + found["decode_2"]["valid"] * found["position_bytes"]
    assert share == pytest.approx(needed / found["decode_2"]["step_s"] / 1e10)
    assert "| tiny:int8:x1 | 2 |" in summary(cells)


def test_the_page_says_what_failed(tmp_path, monkeypatch):
    monkeypatch.setattr("card_report.DOCS", tmp_path)
    found = {"decode:tiny:int8:x8": {"error": "no memory", "decode_0": {"error": "too slow"}}}
    page(found, [found | {"swap:tiny:int8": {"error": "no time"}}, found], "python infer/card.py")
    text = (tmp_path / "card.md").read_text()
    assert "| decode:tiny:int8:x8 | no memory |" in text and "too slow" in text
    assert text.count("no memory") == 1 and text.index("Measured on another") < text.index("no time")
    assert (tmp_path / "card.png").stat().st_size > 1000


def test_the_grid_is_whole_for_the_first_shape_only():
    dtypes = ["bfloat16", "int8", "int4"]
    cells = [cell.name for cell in all_cells(["decode", "torch"], list(CARD_SHAPES), dtypes, [1, 8])]
    assert len([name for name in cells if name.startswith("decode:Qwen2.5-0.5B")]) == 6
    assert not [name for name in cells if "Llama" in name and "int4" in name]
    assert cells.index("torch:Llama-3.2-1B") == cells.index("decode:Llama-3.2-1B:bfloat16:x8") + 1
    with pytest.raises(InputError, match="no part 'decoding'"):
        all_cells(["decoding"], ["tiny"], [], [])
