"""The same shape in PyTorch (transformers, bfloat16, static cache, compiled where that works): for `card.py`."""

import inspect
import statistics as stats
import sys
import time
import warnings
from typing import Any

from card_cells import Cell
from card_child import Notes

DECODE = ("reduce-overhead", "graph", "compiled graph", "default", "eager")
PREFILL = ("reduce-overhead", "default", "eager")
LEAD = 12  # calls before the clock starts: compilation, and the recording of graphs


def warm(cell: Cell, notes: Notes) -> None:
    """Everything once, so that the compiler's own cache has it."""
    measure(cell, notes)


def measure(cell: Cell, notes: Notes) -> None:
    import torch
    import transformers

    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    cuda = torch.cuda.is_available()
    notes.put(torch=torch.__version__, transformers=transformers.__version__,
              device_name=torch.cuda.get_device_name() if cuda else "cpu")  # fmt: skip
    model = _model(cell).to("cuda" if cuda else "cpu", torch.bfloat16).eval()
    jobs: list[tuple[str, Any]] = []
    for n in (1, 8):
        context = cell.scale.context if n == 1 else cell.scale.lane_context
        jobs.append((f"decode_x{n}", lambda way, n=n, context=context: decoding(model, cell, n, context, way)))
    jobs += [(f"prefill_{n}", lambda way, n=n: prefilling(model, cell, n, way)) for n in cell.scale.prefills]
    for name, job in jobs:
        ways = (PREFILL if name.startswith("prefill") else DECODE) if cuda else ("eager",)
        with torch.no_grad():
            notes.put(**{name: _best(job, ways)})


def _best(job: Any, ways: tuple[str, ...]) -> dict[str, Any]:
    """The fastest of the ways that are tried: compiled with graphs, and beside it a step's graph recorded by hand.

    Only where these fail, or the compiler left its graphs out, which shows in that the one by hand is faster, are the
    others tried, too. `failed` says why a way did not work.
    """
    import torch

    found: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for way in ways:
        if found.get("way") == "reduce-overhead" and way != "graph" or found.get("way") == "compiled graph":
            continue
        try:
            torch._dynamo.reset()
            one = job(way) | {"way": way}
            found = one if not found or one["tok_s"] > found["tok_s"] else found
        except Exception as error:  # noqa: BLE001 - what one way cannot do another may
            failed[way] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
            print(f"  {way}: {failed[way]}", file=sys.stderr, flush=True)
    return found | {"failed": failed}


def _model(cell: Cell) -> Any:
    """Random weights of the shape."""
    import transformers

    config = cell.config
    shape = {
        "vocab_size": config.vocab_size, "hidden_size": config.d_model, "intermediate_size": config.d_ff,
        "num_hidden_layers": config.n_layers, "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads, "head_dim": config.head_dim,
        "max_position_embeddings": config.max_context, "tie_word_embeddings": config.tied_head,
        "rms_norm_eps": config.rms_eps,
    }  # fmt: skip
    kind = "Qwen3" if config.qk_norm else "Qwen2" if config.qkv_bias else "Llama"
    if kind == "Qwen2":
        del shape["head_dim"]  # it is d_model / n_heads there
    made = getattr(transformers, f"{kind}Config")(**shape)
    made._attn_implementation = "sdpa"
    return getattr(transformers, f"{kind}ForCausalLM")(made)


def _cache(model: Any, n: int, length: int) -> Any:
    import torch
    from transformers import StaticCache

    sizes = {"max_batch_size": n, "device": model.device, "dtype": torch.bfloat16}
    known = inspect.signature(StaticCache.__init__).parameters
    return StaticCache(config=model.config, max_cache_len=length, **{k: v for k, v in sizes.items() if k in known})


def _step(model: Any) -> Any:
    """(tokens [B, T], positions [T], cache) -> the next token [B, 1] of each row."""

    named = inspect.signature(type(model).forward).parameters

    def step(tokens: Any, positions: Any, cache: Any) -> Any:
        given: dict[str, Any] = {"cache" if "cache" in named else "past_key_values": cache}  # it was renamed
        if "cache_position" in named:  # older versions; newer caches count for themselves
            given["cache_position"] = positions
        rows = positions[None].expand(tokens.shape[0], -1)
        out = model(input_ids=tokens, position_ids=rows, use_cache=True, logits_to_keep=1, **given)
        return out.logits[:, -1].argmax(-1, keepdim=True)

    return step


def _compiled(model: Any, way: str) -> Any:
    import torch

    step = _step(model)
    if way in ("eager", "graph"):
        return step
    return torch.compile(step, mode=way if way == "reduce-overhead" else None, fullgraph=True)


def decoding(model: Any, cell: Cell, n: int, context: int, way: str) -> dict[str, Any]:
    """Tokens per second of greedy steps for n rows after a prompt each."""
    import torch

    scale, device = cell.scale, model.device
    cache = _cache(model, n, context)
    prompt = torch.randint(0, cell.config.vocab_size, (n, scale.prompt), device=device)
    begin = time.perf_counter()
    token = _step(model)(prompt, torch.arange(scale.prompt, device=device), cache)
    run = _compiled(model, way)
    position = torch.tensor([scale.prompt], device=device)
    if way in ("graph", "compiled graph"):
        run = _recorded(run, token, position, cache)

    def steps(count: int) -> float:
        nonlocal token
        _wait()
        start = time.perf_counter()
        for _ in range(count):
            if hasattr(torch.compiler, "cudagraph_mark_step_begin") and way == "reduce-overhead":
                torch.compiler.cudagraph_mark_step_begin()
            token = run(token, position, cache).clone()
            position.add_(1)
        _wait()
        return time.perf_counter() - start

    steps(LEAD if way != "eager" else 2)
    first = time.perf_counter() - begin
    seconds = [steps(scale.steps) / scale.steps for _ in range(scale.repeats)]
    step_s = stats.median(seconds)
    return {"step_s": step_s, "all_s": seconds, "tok_s": n / step_s, "first_s": first}


def _recorded(run: Any, token: Any, position: Any, cache: Any) -> Any:
    """The step as one graph that is played again."""
    import torch

    own = token.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run(own, position, cache)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(own, position, cache)

    def play(token: Any, position: Any, cache: Any) -> Any:
        own.copy_(token)
        graph.replay()
        return out

    return play


def prefilling(model: Any, cell: Cell, n_tokens: int, way: str) -> dict[str, Any]:
    """Tokens per second of a prompt in one piece."""
    import torch

    device = model.device
    cache = _cache(model, 1, max(n_tokens, cell.scale.prompt))
    prompt = torch.randint(0, cell.config.vocab_size, (1, n_tokens), device=device)
    positions, run = torch.arange(n_tokens, device=device), _compiled(model, way)
    begin = time.perf_counter()
    _step(model)(prompt, positions, cache)  # the cache takes its memory outside what is compiled
    for _ in range(2 if way == "eager" else 4):
        cache.reset()
        run(prompt, positions, cache)
    _wait()
    first, seconds = time.perf_counter() - begin, []
    for _ in range(2 * cell.scale.repeats + 1):
        cache.reset()
        _wait()
        begin = time.perf_counter()
        run(prompt, positions, cache)
        _wait()
        seconds.append(time.perf_counter() - begin)
    middle = stats.median(seconds)
    return {"tokens": n_tokens, "seconds": middle, "tok_s": n_tokens / middle, "first_s": first}


def _wait() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
