"""Templates render as Hugging Face renders them, refuse in one line, and cannot run away."""

import datetime

import pytest

from mbjax.errors import InputError
from mbjax.io.template import ChatTemplate

CHATML = """{% for message in messages %}
    {%- if loop.first and message['role'] != 'system' %}<|im_start|>system
default<|im_end|>
{% endif %}
<|im_start|>{{ message['role'] }}
{{ message['content'] | trim }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}"""
USER = [{"role": "user", "content": " hi <b> "}]


def render(source: str, **variables: object) -> str:
    return ChatTemplate(source, "<s>", "</s>").render(USER, **variables)


def test_a_conversation() -> None:
    opened = ChatTemplate(CHATML).render(USER)
    assert opened == (
        "<|im_start|>system\ndefault<|im_end|>\n<|im_start|>user\nhi <b><|im_end|>\n<|im_start|>assistant\n"
    )
    closed = ChatTemplate(CHATML).render([{"role": "system", "content": "s"}, *USER], add_generation_prompt=False)
    assert closed == "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nhi <b><|im_end|>\n"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ bos_token }}{{ eos_token }}", "<s></s>"),
        ("{{ {'a': 'é<'} | tojson }}", '{"a": "é<"}'),
        ("{{ [1] | tojson(indent=1) }}", "[\n 1\n]"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% generation %}x{% endgeneration %}y", "xy"),
        ("{% set ns = namespace(n=0) %}{% for i in range(3) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "3"),
        ("{{ 'a' ~ 1 ~ none }}{{ 7 % 4 }}{{ 'ab' * 2 }}{{ 2 ** 3 }}", "a1None3abab8"),
        ("{% macro m(x) %}[{{ x }}]{% endmacro %}{{ m('a') ~ m('b') }}", "[a][b]"),
        ("{{ messages[0].content.strip().split(' ')[0] }}", "hi"),
        ("{{ tools is none }}{{ enable_thinking is defined }}", "TrueFalse"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "1"),
    ],
)
def test_what_templates_use(source: str, text: str) -> None:
    assert render(source) == text


def test_variables_and_the_date() -> None:
    assert render("{{ enable_thinking }}", enable_thinking=False) == "False"
    assert render("{{ strftime_now('%Y') }}") in {str(datetime.datetime.now().year + d) for d in (-1, 0)}


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% if %}", "fails"),
        ("{{ messages[5].content.x }}", "fails"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% generation %}", "fails"),
        ("{% include 'x' %}", "fails"),
    ],
)
def test_a_template_that_fails_is_one_line(source: str, named: str) -> None:
    with pytest.raises(InputError, match=named) as caught:
        render(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ (messages | attr('__class__')) }}{{ (messages | attr('__class__')).mro() }}",
        "{{ '{0.__class__}'.format(messages) }}",
    ],
)
def test_python_is_out_of_reach(source: str) -> None:
    try:
        text = render(source)
    except InputError:
        return
    assert "class" not in text and "globals" not in text


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
        "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{% macro f(n) %}{% if n < 40 %}{{ f(n + 1) }}{{ f(n + 1) }}{% endif %}{% endmacro %}{{ f(0) }}",
        "{{ 'x' * 10 ** 10 }}",
        "{{ ['x'] * 10 ** 10 }}",
        "{{ 9 ** 99999999 }}",
        "{{ 'x' | center(10 ** 10) }}",
        "{{ 'x'.ljust(10 ** 10) }}",
        "{{ '%10000000000d' % 1 }}",
        "{{ '%10000000000d' | format(1) }}",
        "{{ '{:10000000000}'.format(1) }}",
        "{{ range(10 ** 12) | list }}",
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(n=9) %}{% for i in range(60) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s | replace('x', 'xxx') %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] | join %}{% endfor %}",
        "{% macro m(s) %}{{ s }}{{ s }}{% endmacro %}{{ " + "m(" * 30 + "'x'" + ")" * 30 + " | length }}",
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor %}",
        "{% for a in range(9999) recursive %}{{ loop(range(9999)) }}{% endfor %}",
        "{{ (range(9999) | map('string') | list) | map('replace', '', 'x' * 9999) | list | length }}",
    ],
)
def test_a_template_cannot_run_away(source: str) -> None:
    with pytest.raises(InputError, match="it (runs|makes|calls|formats)|RecursionError|No filter"):
        render(source)


def test_limits_are_per_rendering() -> None:
    template = ChatTemplate("{% for i in range(9000) %}{% endfor %}" * 3 + "ok")
    assert [template.render(USER) for _ in range(3)] == ["ok"] * 3
