"""The commands, run as a user would; a tiny base on disk stands for a real one."""

import json
import subprocess
import sys

import pytest
from tiny_bases import CONFIG, random_weights, write_hf
from tiny_text import TEMPLATE, write_jsonl

import mbjax.engine.engine
import mbjax.engine.stream
from mbjax.cli.main import run
from mbjax.engine.demo import DEMO_PROMPTS
from mbjax.errors import FailureError


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """An HF directory with a chat template, and an MBJAX_HOME that its converted form is kept in."""
    directory = write_hf(tmp_path_factory.mktemp("bases") / "tiny", random_weights())
    settings = {"eos_token": "<|im_end|>", "chat_template": TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MBJAX_HOME", str(tmp_path_factory.mktemp("home")))
        yield str(directory)


def document(capsys) -> dict:
    """The one JSON document on stdout; fails where anything else stands there."""
    return json.loads(capsys.readouterr().out)


def refused(capsys, status: int, *arguments: str) -> str:
    """The one line on stderr of a command that ends with `status` and prints nothing."""
    assert run(list(arguments)) == status
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("mbjax: ") and err.count("\n") == 1, err
    return err


def test_help_is_quick():
    code = (
        "import sys; from mbjax.cli.main import run; status = run(['--help'])\n"
        "print(status, sorted({'jax', 'numpy', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    assert all(name in done.stdout for name in ("demo", "pull", "generate", "chat", "eval", "plan", "bench"))


@pytest.mark.parametrize("arguments", [[], ["-h"], ["generate", "-h"], ["--version"]])
def test_help_and_version_end_well(capsys, arguments):
    assert run(arguments) == 0
    assert capsys.readouterr().out


def test_generate_prints_the_answer_and_the_document_agrees(capsys, base):
    arguments = ["generate", "a test", "--base", base, "-n", "6", "--context", "64"]
    assert run(arguments) == 0
    printed = capsys.readouterr()
    assert "tokens/s" in printed.err
    assert run([*arguments, "--json"]) == 0
    reply = document(capsys)
    assert printed.out == reply["text"] + "\n"
    assert set(reply) == {"text", "tokens", "n_prompt", "route", "timing", "memory"}
    assert len(reply["tokens"]) <= 6 and reply["route"] == [] and reply["n_prompt"] > 10
    assert set(reply["timing"]) == {"ttft_s", "prefill_tok_s", "decode_tok_s"}
    assert set(reply["memory"]) == {"components", "peak", "budget"}


def test_sampling_options_reach_the_sampler(capsys, base, monkeypatch):
    seen = []
    original = mbjax.engine.engine.Engine.stream

    def stream(self, prompt, **settings):
        seen.append(settings)
        return original(self, prompt, **settings)

    monkeypatch.setattr(mbjax.engine.engine.Engine, "stream", stream)
    cuts = ["-t", "0.5", "--top-k", "4", "--top-p", "0.9", "--min-p", "0.1"]
    more = ["--repetition-penalty", "1.5", "--seed", "7", "--stop", "x", "--stop", "yz", "--raw"]
    arguments = [*cuts, *more, "-n", "3", "--context", "64"]
    assert run(["generate", "a test", "--base", base, *arguments]) == 0
    expected = mbjax.Sampling(0.5, 4, 0.9, 0.1, 1.5, 7)
    assert seen == [{"pack": "auto", "max_tokens": 3, "sampling": expected, "stop": ["x", "yz"], "raw": True}]


def test_a_prompt_may_come_from_standard_input(capsys, base, monkeypatch):
    lines = iter(["a test"])
    monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"read": lambda self: next(lines)})())
    assert run(["generate", "-", "--base", base, "-n", "2", "--context", "64"]) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["generate", ""], "the prompt is empty"),
        (["generate", "long " * 100], "the context 64"),
        (["generate", "x", "-n", "0"], "max_tokens is 0"),
        (["generate", "x", "-t", "-1"], "temperature is -1"),
        (["generate", "x", "-t", "nan"], "temperature is nan"),
        (["generate", "x", "--top-k", "-1"], "top_k is -1"),
        (["generate", "x", "--top-p", "0"], "top_p is 0"),
        (["generate", "x", "--top-p", "1.1"], "top_p is 1.1"),
        (["generate", "x", "--min-p", "1"], "min_p is 1"),
        (["generate", "x", "--repetition-penalty", "0"], "repetition_penalty is 0"),
        (["generate", "x", "--seed", "-1"], "seed is -1"),
        (["generate", "x", "--dtype", "int3"], "dtype 'int3'"),
        (["eval", "no/such.jsonl"], "no/such.jsonl: cannot be read"),
        (["bench", "--prompt-tokens", "65"], "prompt tokens is 65"),
        (["plan", "--budget", "plenty"], "budget 'plenty'"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(capsys, base, arguments, reason):
    assert reason in refused(capsys, 2, *arguments, "--base", base, "--context", "64")


@pytest.mark.parametrize("context", ["0", "-1", "513"])
def test_a_context_that_the_base_does_not_bear(capsys, base, context):
    assert "1 to 512" in refused(capsys, 2, "generate", "x", "--base", base, "--context", context)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["generate"], "Missing argument"),
        (["generate", "x", "--colour"], "--colour"),
        (["generate", "x", "--top-k", "many"], "--top-k"),
        (["nonsense"], "nonsense"),
        (["pull", "smollm2-135"], "did you mean 'smollm2-135m'"),
        (["generate", "x", "--base", "qwen2.5-0.5"], "did you mean 'qwen2.5-0.5b'"),
        (["generate", "x", "--base", "no/such/base"], "no such file"),
    ],
)
def test_usage_errors_are_one_line_and_status_2(capsys, home, arguments, reason):
    assert reason in refused(capsys, 2, *arguments)


def test_failures_are_status_1_and_the_unforeseen_tells_how_to_see_more(capsys, home, monkeypatch):
    def fail(error):
        def pull(name, progress=None):
            raise error

        monkeypatch.setattr("mbjax.io.pull.pull", pull)

    fail(FailureError("the disk\nis full"))
    assert refused(capsys, 1, "pull", "smollm2-135m") == "mbjax: the disk is full\n"
    fail(ZeroDivisionError("oh"))
    assert "internal error: ZeroDivisionError: oh; run with MBJAX_TRACEBACK=1" in refused(capsys, 1, "pull", "x")
    monkeypatch.setenv("MBJAX_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        run(["pull", "x"])
    fail(KeyboardInterrupt())
    assert run(["pull", "x"]) == 130


def test_eval_reports_items_and_summary(capsys, base, tmp_path):
    choice = {"prompt": "p", "choices": ["a", "b"], "label": 1}
    path = str(write_jsonl(tmp_path / "f.jsonl", [choice, choice]))
    assert run(["eval", path, "--base", base, "--json"]) == 0
    result = document(capsys)
    assert [set(item) >= {"correct", "route"} for item in result["items"]] == [True, True]
    assert {"metric", "value", "n"} <= set(result["summary"])
    assert run(["eval", path, "--base", base]) == 0
    assert "metric: acc" in capsys.readouterr().out


def test_a_wrong_line_is_told_before_the_base_is_loaded(capsys, home, tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text('{"text": "t"}\n{}\n')
    assert f"{path}:2: " in refused(capsys, 2, "eval", str(path), "--base", "no/such/base")


def test_plan_reports_what_fits(capsys, base):
    arguments = ["plan", "--base", base, "--context", "20"]
    assert run([*arguments, "--budget", "4GiB", "--json"]) == 0
    plan = document(capsys)
    assert plan["fits"] is True and plan["budget"] == 2**32
    assert plan["total"] == sum(plan["components"].values())
    assert run([*arguments, "--budget", "100kB"]) == 0
    out = capsys.readouterr().out
    assert "temporaries" in out and "does not fit" in out


def test_bench_reports_its_keys(capsys, base):
    arguments = ["bench", "--base", base, "--context", "32", "-p", "20", "-n", "4", "-r", "1"]
    assert run([*arguments, "--json"]) == 0
    keys = {"prefill_tok_s", "decode_tok_s", "bandwidth_share", "swap_s", "memory"}
    assert keys <= set(document(capsys))


def test_chat_keeps_the_history_until_reset(capsys, base, monkeypatch):
    prompts = []
    original = mbjax.engine.engine.Engine.read

    def read(self, prompt, **settings):
        prompts.append([message["content"] for message in prompt])
        return original(self, prompt, **settings)

    monkeypatch.setattr(mbjax.engine.engine.Engine, "read", read)
    typed = iter(["one", "", "two", "x" * 2000, "/reset", "three", "/exit", "never"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    assert run(["chat", "--base", base, "-n", "2", "--context", "128", "--system", "be"]) == 0
    printed = capsys.readouterr()
    assert [len(prompt) for prompt in prompts] == [2, 4, 2, 2]  # system and turns; the third is too long for any
    assert prompts[1][:2] == ["be", "one"] and prompts[1][3] == "two" and prompts[3] == ["be", "three"]
    assert "the context 128" in printed.err and "tokens/s" in printed.err
    assert "[base]" in printed.err and "[█" in printed.err  # the route, and the bar of memory
    assert CONFIG.max_context > 128 and next(typed) == "never"


def test_ctrl_c_stops_the_answer_and_not_the_chat(capsys, base, monkeypatch):
    original, calls = mbjax.engine.stream.StopScanner.push, []

    def push(self, piece):
        calls.append(piece)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, piece)

    monkeypatch.setattr(mbjax.engine.stream.StopScanner, "push", push)
    typed = iter(["one", "two", "/exit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    assert run(["chat", "--base", base, "-n", "5", "--context", "128"]) == 0
    assert len(calls) > 3


def test_the_end_of_input_ends_the_chat(capsys, base, monkeypatch):
    def end(prompt):
        raise EOFError

    monkeypatch.setattr("builtins.input", end)
    assert run(["chat", "--base", base, "--context", "64"]) == 0


def test_the_demo_answers_its_prompts_and_shows_the_memory(capsys, base, monkeypatch):
    asked = []

    def load_engine(name, dtype, context):
        asked.append(name)
        return mbjax.Engine.load(base, context=256)

    monkeypatch.setattr("mbjax.cli.demo.load_engine", load_engine)
    assert run(["demo"]) == 0
    printed = capsys.readouterr()
    assert asked == ["smollm2-135m"]
    assert printed.out.count("\n> ") + printed.out.startswith("> ") == len(DEMO_PROMPTS)
    assert "kv" in printed.out and "total" in printed.out and printed.err.count("first after") == len(DEMO_PROMPTS)
