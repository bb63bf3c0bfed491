"""The builder of the text for a small base, on packages of a few files, and what it makes of HTML."""

import gzip
import json

import base_text
import pytest
from base_text_sources import jargon, perl_manual, python_source, vim_manual
from html_text import html_text

from mbjax.errors import InputError
from mbjax.training.corpus_sources import read_documents

PAGE = """<html><head><title>no</title><style>no</style></head><body>
<div class="menu nosearch"><div>no</div><ul><li>no</ul></div><script>if (a < b) no();</script>
<h1 class="title">A   title</h1><p>First &amp;
second <em>words</em>.<br>After a break.</p><ul><li>one<li><p>two</p></ul>
<pre>  kept
    as it <b>is</b></pre><table><tr><td>a</td><td>b</td></tr></table><nav>no</nav></body></html>"""


def test_html_becomes_paragraphs_and_code():
    text = html_text(PAGE)
    assert "no" not in text.replace("now", "")
    assert text.startswith("A title\n\nFirst & second words.\nAfter a break.\n\n- one\n- two\n")
    assert "  kept\n    as it is" in text and text.endswith("a b")


@pytest.fixture
def root(tmp_path):
    """Debian packages of one file each, unpacked."""
    folder = tmp_path / "root"
    files = {
        "usr/share/perl/5.36.0/pod/perlx.pod": "=head1 NAME\n\nperlx - a C<< $x >> of I<B<bold>> words\n\n=over 4\n\n"
        + "text " * 60,
        "usr/share/vim/vim90/doc/x.txt": "*x.txt*  A manual\n" + "word " * 60,
        "usr/share/vim/vim90/doc/version9.txt": "patch " * 60,
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    entries = "".join(
        f"   :word{i}: n.\n\n   Means the thing of number {i}. {'And so on. ' * 30}\n\n" for i in range(20)
    )
    path = folder / "usr/share/doc/jargon-text/jargon.txt.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(("   │ a ─── table │\n\n   index\n\n" + entries).encode()))
    return folder


def test_manuals_lose_their_marks(root):
    (pod,) = perl_manual(root)
    assert pod.startswith("NAME\n\nperlx - a $x of bold words\n\ntext text")
    (manual,) = vim_manual(root)
    assert manual.startswith("A manual\n")
    texts = list(jargon(root))
    assert all(text.startswith(":word") for text in texts) and "table" not in "".join(texts)
    assert sum(text.count(": n.\n\nMeans") for text in texts) == 20


def test_what_is_there_is_built_and_the_rest_is_said_to_be_missing(root, tmp_path, capsys):
    names = ("jargon", "perl", "vim")
    for out in ("one", "two"):
        meta = base_text.build(root, tmp_path / out, names)
    assert set(meta["files"]) == {f"{name}.jsonl" for name in names} and not meta["missing"]
    for name, about in meta["files"].items():
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
        texts = [document.text for document in read_documents(tmp_path / "one" / name)]
        assert about["documents"] == len(texts) and about["bytes"] == sum(len(text.encode()) for text in texts)
    assert json.loads((tmp_path / "one" / "meta.json").read_text()) == meta
    with pytest.raises(InputError, match="sqlite3-doc"):
        base_text.build(root, tmp_path / "three", ("sqlite",))
    with pytest.raises(InputError, match="no source 'novels'"):
        base_text.build(root, tmp_path / "three", ("novels",))


def test_long_documents_are_cut_before_a_paragraph():
    text = "\n\n".join(f"paragraph {i} " + "word " * 40 for i in range(50))
    cut = list(base_text.pieces(text, 1_000))
    assert all(len(piece) <= 1_000 and piece.startswith("paragraph") for piece in cut)
    assert "\n\n".join(cut).split() == text.split()
    assert [len(piece) for piece in base_text.pieces("x" * 2_500, 1_000)] == [1_000, 1_000, 500]


def test_the_python_library_is_read_without_its_tests():
    texts = list(python_source(None))  # type: ignore[arg-type]
    assert sum(map(len, texts)) > 5_000_000 and not any("class Test_TestLoader" in text for text in texts)
