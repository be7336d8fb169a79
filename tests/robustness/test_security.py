"""What strangers' files and names can do here: be read, and nothing else. What leaves this machine: nothing unasked."""

from __future__ import annotations

import ast
import csv
import html
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.adapter_faults import CODE, MARKER, a_pickle
from helpers.bf16_units import pretend_bf16_units
from helpers.hub_standin import Hub, running
from helpers.parquet_datasets import AUDIO
from helpers.tones import write_tone
from huggingface_hub import ModelCard

from peft_audio import cli
from peft_audio.adapters.record import read_record
from peft_audio.comparison.collect import read_comparison
from peft_audio.comparison.page import write_comparison
from peft_audio.comparison.settings import CompareRecipe
from peft_audio.config import DataConfig, read_config, to_yaml
from peft_audio.errors import UserError
from peft_audio.publish.model_card import model_card
from peft_audio.runs.finished import NEEDED
from peft_audio.strategies import LoraRecipe
from peft_audio.text import printable, safe_to_print

ROOT = Path(__file__).parents[2]
TOKEN, PASSWORD = "hf_" + "Z" * 34, "open-sesame"

# Told by Python itself, whoever opens the socket: what is not for this machine is written down, and refused.
GUARD = """
import os
import sys

def guard(event, args):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        host = args[1][0] if isinstance(args[1], tuple) else None  # a Unix socket has a path
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = args[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if isinstance(host, str) and host not in ("", "localhost", "::", "::1", "0.0.0.0") and host[:4] != "127.":
        with open(os.environ["ASKED"], "a") as asked:
            asked.write(f"{event} {host}\\n")
        raise OSError(f"no network here, and {host} was asked")

sys.addaudithook(guard)
"""
# Several commands in one process, because starting one takes longer than what it does here.
COMMANDS = """
import contextlib, io, json, sys
import huggingface_hub.utils._http as http
from peft_audio.cli import main
http.time.sleep = lambda seconds: None
found = []
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            code = main(words)
        except SystemExit as stop:
            code = stop.code
    found.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(found))
"""
LABELS = (
    "../../evil",
    "/etc/evil",
    "<script>alert(1)</script>",
    "\x1b[31mred\x1b[0m",
    "two\nlines\x00\u202e",
    "[x](javascript:y) | `z` $w$, =1+1",
)
SPLITS = ("train", "train", "train", "validation", "test")


@dataclass(frozen=True)
class Outcome:
    """What a few commands left: their folder, and of each its exit code and what it printed on stdout and stderr."""

    folder: Path
    said: dict[str, tuple[int, str, str]]


def make_world(folder: Path, base: Path) -> None:
    """Recordings with names that no program expects, and an encoder that brings code of its own."""
    rows = []
    for i, label in enumerate(LABELS):
        for k, split in enumerate(SPLITS):
            name = f"{i}{k}.wav" if k else f"{i}\x1b]0;owned\x07\n<img src=x onerror=y>.wav"
            write_tone(folder / "clips <b>&" / name, 200 * (1 + i) + 5 * k, 0.2 + 0.01 * k, seed=10 * i + k)
            rows.append({"path": name, "label": label, "split": split, "group": f"../../{i}{k}\x1b[2J"})
    lines = "\n".join(map(json.dumps, rows))
    (folder / "clips <b>&" / "list.jsonl").write_text(lines, encoding="utf-8")
    shutil.copytree(base, folder / "base")
    bring_code(folder / "base" / "config.json", ("AutoConfig", "AutoModelForAudioClassification"))
    bring_code(folder / "base" / "preprocessor_config.json", ("AutoFeatureExtractor",))
    for place in (folder, folder / "base"):
        (place / "evil.py").write_text(f"{CODE}class Evil: pass\n")


def bring_code(file: Path, kinds: tuple[str, ...], **more: str) -> None:
    """Have a config say that its classes are in evil.py."""
    stored = json.loads(file.read_text()) | more
    file.write_text(json.dumps(stored | {"auto_map": dict.fromkeys(kinds, "evil.Evil")}))


@pytest.fixture(scope="module")
def outcome(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A recipe, a comparison, and every command that needs no Hub, as processes that can reach only this machine."""
    folder = tmp_path_factory.mktemp("above") / "world"
    make_world(folder, tiny_base)
    (folder / "guard").mkdir()
    (folder / "guard" / "sitecustomize.py").write_text(GUARD)
    where = ["--data.source", "clips <b>&/list.jsonl", "--model.name", "base", "--train.epochs", "1"]
    recipe = [str(ROOT / "recipes" / "lora.py"), *where, "--train.output_dir", "runs/lora"]
    said = {"recipe": process(folder, *recipe, "--train.log_with", "[tensorboard]", "--lora.r", "2")}
    compare = ["--output_dir", "compared", "--arms", "[majority]", "--reference", "majority", "--seeds", "1"]
    said["compare"] = process(folder, str(ROOT / "recipes" / "compare.py"), *where, *compare)
    # Beside a run, and beside what it saved, as other programs leave them.
    for place in ("optimizer.pt", "scheduler.bin", "random_states_0.pkl", "adapter/training_args.bin"):
        a_pickle(place)(folder / "runs" / "lora")
    adapter = ["--adapter", "runs/lora/adapter"]
    predict = ["predict", "clips <b>&"]
    commands = {
        "predict": [*predict, *adapter],
        "predict --json": [*predict, *adapter, "--json"],
        **{f"predict {form}": [*predict, *adapter, "--out", f"out.{form}"] for form in ("csv", "jsonl", "parquet")},
        "evaluate": ["evaluate", "runs/lora/adapter", "clips <b>&/list.jsonl", "--out", "judged"],
        "verify": ["verify", "runs/lora/adapter"],
        "check": ["check", "clips <b>&/list.jsonl"],
        "export": ["export", "runs/lora/adapter", "merged", "--merged"],
        "report": ["report", "runs", "--reference", "lora", "--out", "page"],
        "no such file": ["predict", "\x1b[31mnothing.wav", *adapter],
        "no such adapter": ["predict", "clips <b>&", "--adapter", "../../up\x1b[31m"],
    }
    done = process(folder, "-c", COMMANDS, json.dumps([*commands.values()]))
    assert done[0] == 0, done
    answers = json.loads(done[1].splitlines()[-1])
    return Outcome(folder, said | {name: tuple(answer) for name, answer in zip(commands, answers, strict=True)})


def process(folder: Path, *words: str, **known: str) -> tuple[int, str, str]:
    """A process of its own in the folder: logged in, with an empty cache, and free to ask the Hub if it likes."""
    env = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_ENDPOINT")}
    paths = [str(folder / "guard"), str(ROOT), env.get("PYTHONPATH", "")]
    env |= {"ASKED": str(folder / "asked"), "PYTHONPATH": os.pathsep.join(paths), "HF_HOME": str(folder / "home")}
    env |= {"HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"} | known
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=250)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_nobody_was_asked(outcome: Outcome, tmp_path: Path) -> None:
    codes = {name: said[0] for name, said in outcome.said.items()}
    expected = dict.fromkeys(codes, 0) | {"compare": 1, "check": codes["check"], "report": 1}
    assert codes == expected | dict.fromkeys(("no such file", "no such adapter"), 2), outcome.said
    assert not (outcome.folder / "asked").exists(), (outcome.folder / "asked").read_text()
    # The guard would have told.
    for question in ("socket.create_connection(('huggingface.co', 443))", "socket.gethostbyname('huggingface.co')"):
        code, _, err = process(outcome.folder, "-c", f"import socket; {question}", ASKED=str(tmp_path / "asked"))
        assert code and "no network here" in err
    assert (tmp_path / "asked").read_text().count("huggingface.co") == 2


@pytest.mark.slow
def test_nothing_ran_and_nothing_stands_outside(outcome: Outcome) -> None:
    assert not [*outcome.folder.parent.rglob(MARKER)]
    assert [path.name for path in outcome.folder.parent.iterdir()] == ["world"]
    given = {"clips <b>&", "base", "evil.py", "guard"}
    made = {"runs", "compared", "out.csv", "out.jsonl", "out.parquet", "judged", "merged", "page"}
    assert {path.name for path in outcome.folder.iterdir()} - {"__pycache__", "home"} == given | made
    assert {path.name for path in (outcome.folder / "runs" / "lora").iterdir()} >= {"adapter", "splits.parquet"}
    # No label, group or id has become a name, whatever file or folder it is.
    named = [path for path in outcome.folder.rglob("*") if re.search(r"evil(?!\.py)|owned|<script|\x1b", path.name)]
    assert {path.parent.name for path in named} <= {"clips <b>&"}, named
    # What is only data stands as it was given.
    splits = pq.read_table(outcome.folder / "runs" / "lora" / "splits.parquet").to_pydict()
    assert set(splits["label"]) == set(LABELS) and all(group.startswith("../../") for group in splits["group"])


@pytest.mark.slow
def test_what_is_shown_gives_no_orders(outcome: Outcome) -> None:
    for name, (_, out, err) in outcome.said.items():
        # JSON escapes in its own way. rich colours nothing here, and the bars are no terminal's.
        text = err if name == "predict --json" else out + err
        assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e]", text), (name, text)
    assert r"\x1b[31mnothing.wav: matches" in outcome.said["no such file"][2].replace("no such file", "matches")
    table = outcome.said["check"][1]
    assert r"\x1b[31mred" in table and r"two\nlines\x00\u202e" in table
    ids = {f"clips <b>&/{path.name}" for path in (outcome.folder / "clips <b>&").glob("*.wav")}
    with (outcome.folder / "out.csv").open(newline="", encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    assert {row["path"] for row in rows} == ids and {f"probability_{label}" for label in LABELS} <= rows[0].keys()
    lines = [json.loads(line) for line in (outcome.folder / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert (
        {line["path"] for line in lines}
        == ids
        == {line["path"] for line in json.loads(outcome.said["predict --json"][1])}
    )
    assert set(pq.read_table(outcome.folder / "out.parquet")["path"].to_pylist()) == ids


@pytest.mark.slow
def test_pages_and_cards_hold_names_as_text(outcome: Outcome) -> None:
    pages = [outcome.folder / "page", outcome.folder / "compared"]
    for page in pages:
        body = (page / "comparison.html").read_text(encoding="utf-8")
        assert "clips &lt;b&gt;&amp;/list.jsonl" in body and "<b>" not in body and "<script" not in body
        assert r"clips \<b>\&/list.jsonl" in (page / "comparison.md").read_text(encoding="utf-8")
        ElementTree.parse(page / "comparison.svg")
    for card in (outcome.folder / "runs" / "lora" / "adapter", outcome.folder / "merged"):
        text = re.sub(r"```.*?```|`[^`]*`", "", (card / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
        assert "<script" not in text and "\x1b" not in text and "\x00" not in text
    record = read_record(outcome.folder / "runs" / "lora" / "adapter")
    record = replace(record, base=replace(record.base, name="org/tiny", commit="0" * 40))
    written = model_card(record, "me/x", outcome.folder / "runs" / "lora", None, "apache-2.0")
    prose = re.sub(r"```.*?```|`[^`]*`", "", written.replace("\\`", ""), flags=re.DOTALL)
    assert "<script" not in prose.replace("\\<", "") and "](javascript" not in prose.replace("\\]", "")
    assert "\x1b" not in written and "\x00" not in written and r"| two lines\\x00\\u202e |" in written
    assert ModelCard(written).data.license == "apache-2.0"


@pytest.mark.slow
def test_no_file_and_no_line_holds_the_token(outcome: Outcome) -> None:
    assert all(TOKEN not in out + err for _, out, err in outcome.said.values())
    files = [path for path in outcome.folder.rglob("*") if path.is_file()]
    assert len(files) > 60 and any("tfevents" in path.name for path in files)
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]


@pytest.mark.slow
def test_a_hub_is_told_and_tells_no_more_than_it_must(adapter_dir: Path, tiny_base: Path, tmp_path: Path) -> None:
    secret = write_tone(tmp_path / "private.wav", 300)
    rows = [{"audio": {"bytes": None, "path": str(secret)}, "pitch": i % 2} for i in range(12)]
    features = {"audio": AUDIO, "pitch": {"names": ["low", "high"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    (tmp_path / "paths" / "data").mkdir(parents=True)
    audio = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.Table.from_pylist(rows, pa.schema([("audio", audio), ("pitch", pa.int64())]))
    pq.write_table(
        table.replace_schema_metadata(metadata), tmp_path / "paths" / "data" / "train-00000-of-00001.parquet"
    )
    clip, own = str(write_tone(tmp_path / "clip.wav", 500)), str(adapter_dir)
    commands = [
        ["predict", clip, "--adapter", "me/pitch"],
        ["verify", "me/pitch"],
        ["evaluate", "me/pitch", "org/paths"],
        ["predict", clip, "--adapter", "me/../../pitch"],
        ["predict", clip, "--adapter", "me/secret"],
        ["push", own, "me/new", "--base-id", "org/tiny"],
        ["check", f"https://me:{PASSWORD}@example.com/list.csv"],
    ]
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD)
    models = {"org/tiny": tiny_base, "me/pitch": adapter_dir, "me/secret": adapter_dir}
    with running(Hub(models, {"org/paths": tmp_path / "paths"}, tmp_path / "hub")) as hub:
        hub.models["me/secret"].private = True
        # A token that this Hub does not know, and a mirror that wants a password.
        address = hub.url().replace("//", f"//me:{PASSWORD}@")
        code, out, err = process(tmp_path, "-c", COMMANDS, json.dumps(commands), HF_ENDPOINT=address)
        requests = [*hub.requests]
    assert code == 0, err
    said = json.loads(out.splitlines()[-1])
    assert [code for code, _, _ in said] == [0, 0, 2, 2, 2, 2, 2], said
    assert "a file outside the dataset" in said[2][2] and "is not opened" in said[2][2]
    assert "//***@127.0.0.1" in said[5][2] and "holds a password" in said[6][2]
    assert not (tmp_path / "asked").exists(), (tmp_path / "asked").read_text()
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and "guard" not in path.parts]
    for word in (TOKEN, PASSWORD):
        assert word not in out + err and not [content for content in files if word.encode() in content]
    # Nothing but what was named: no telemetry, no list of coding agents.
    wanted = r"/(org/tiny|me/pitch|me/secret|me/new|org/paths|api/repos/create)"
    assert requests and not [request for request in requests if not re.search(wanted, request)], requests


def test_bitsandbytes_fetches_no_code(tmp_path: Path) -> None:
    """With stand-ins for it and for `kernels`; it asks for code only on CPUs with units for bf16."""
    (tmp_path / "bitsandbytes.py").write_text(
        "try:\n    from kernels import get_kernel\n    get_kernel('org/name')\n"
        "except ImportError:\n    import logging\n"
        "    logging.getLogger('bitsandbytes.backends.cpu.ops').warning('pip install kernels')\n"
    )
    (tmp_path / "kernels.py").write_text("def get_kernel(name):\n    print('fetched', name)\n")
    code = "import sys; sys.path.insert(0, sys.argv[1])\n{}import peft_audio, bitsandbytes, kernels\n"
    code += "assert bitsandbytes.__spec__.loader is bitsandbytes.__loader__; kernels.get_kernel('asked')"
    for before in ("", "import kernels\n"):
        words = [sys.executable, "-c", code.format(before), str(tmp_path)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "fetched asked\n", "")


def test_processes_of_this_package_do_not_print_the_line_of_bitsandbytes(tmp_path: Path) -> None:
    command, env = [sys.executable, "-c", "import peft_audio, bitsandbytes"], pretend_bf16_units(tmp_path)
    assert subprocess.run(command, capture_output=True, text=True, check=True, env=env).stderr == ""


def test_a_base_of_an_unknown_kind_is_refused_before_its_code_is_looked_at(
    tiny_base: Path, adapter_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(tiny_base, tmp_path / "base")
    bring_code(tmp_path / "base" / "config.json", ("AutoConfig", "AutoModel"), model_type="evil")
    (tmp_path / "base" / "evil.py").write_text(f"{CODE}class Evil: pass\n")
    monkeypatch.chdir(tmp_path)
    # Whoever is asked whether code may run may say yes.
    monkeypatch.setattr("builtins.input", lambda *asked: "y")
    from peft_audio.training.hardware import resolve_auto

    with pytest.raises(Exception, match=r"trust_remote_code|custom code"):
        resolve_auto(replace(LoraRecipe(), model=replace(LoraRecipe().model, name="base")))
    clip = str(write_tone(tmp_path / "clip.wav", 500))
    assert cli.main(["predict", clip, "--adapter", str(adapter_dir), "--base", "base"]) == 2
    assert "error: --base: base cannot be loaded" in capsys.readouterr().err
    assert not [*tmp_path.rglob(MARKER)]


BOMB = (
    "data:\n  source: [&a [x, x], " + ", ".join(f"&a{i} [*a{i - 1 or ''}, *a{i - 1 or ''}]" for i in range(1, 60)) + "]"
)
SETTINGS = {
    "a tag": "data: {source: !!python/object/apply:os.mkdir [EXECUTED]}",
    "a tag in an arm": "own_arms: {x: {recipe: lora, flags: {lora.r: !!python/object/apply:os.mkdir [EXECUTED]}}}",
    "a module in an arm": "own_arms: {x: {class_path: evil_settings.Evil}}\narms: [x, full]",
    "a module in a flag of an arm": "own_arms: {x: {recipe: lora, flags: {lora.r: {class_path: evil_settings.Evil}}}}",
    "a module in a section": "data: {class_path: evil_settings.Evil}",
    "a module behind an anchor": "own_arms: {x: {&y class_path : evil_settings.Evil}}",
    "aliases": BOMB,
}


@pytest.mark.parametrize("what", SETTINGS)
def test_settings_are_values_and_name_no_code(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "evil_settings.py").write_text(f"{CODE}class Evil: pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "settings.yaml"
    file.write_text(SETTINGS[what])
    for recipe in (LoraRecipe, CompareRecipe):
        with pytest.raises(UserError, match=r"--\w+: .*(not plain YAML|no such setting)"):
            read_config(recipe, ["--config", str(file)])
    # As what a run, or a comparison, of somebody else says of itself.
    run, other = tmp_path / "runs" / "one", tmp_path / "other"
    run.mkdir(parents=True)
    (run / "report.json").write_text(json.dumps(dict.fromkeys(NEEDED, 1) | {"strategy": "lora"}))
    shutil.copy(file, run / "config.yaml")
    other.mkdir()
    shutil.copy(file, other / "comparison.yaml")
    (other / "runs.json").write_text('{"jobs": []}')
    assert [cli.main(["report", str(place)]) for place in (run, other)] == [2, 2]
    assert "config.yaml cannot be read" in capsys.readouterr().err
    assert not [*tmp_path.rglob(MARKER)] and "evil_settings" not in sys.modules


def test_a_flag_names_no_code_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil_flag.py").write_text("class Evil: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    for flag in ("--own_arms={x: {class_path: evil_flag.Evil}}", '--data={"class_path": "evil_flag.Evil"}'):
        for words in ([flag], flag.split("=", 1)):
            with pytest.raises(UserError, match="got a class_path"):
                read_config(CompareRecipe, words)
    assert "evil_flag" not in sys.modules


@pytest.mark.parametrize(
    ("recipe", "flags"),
    [
        (LoraRecipe, ["--data.source", f"https://me:{PASSWORD}@example.com/list.csv"]),
        (LoraRecipe, ["--model.name", f"org/tiny?token={TOKEN}"]),
        (LoraRecipe, ["--data.source", "https://example.com/list.csv?X-Amz-Signature=open-sesame"]),
        (CompareRecipe, ["--own_arms", "{x: {recipe: lora, flags: {model.name: '" + TOKEN + "'}}}"]),
    ],
)
def test_settings_hold_no_secret_that_a_run_would_write_down(recipe: type[Any], flags: list[str]) -> None:
    with pytest.raises(UserError, match="holds a password, a token or a signature") as refused:
        read_config(recipe, flags)
    assert PASSWORD not in str(refused.value) and TOKEN not in str(refused.value)


@pytest.mark.parametrize(
    "job",
    [{"folder": "/etc"}, {"folder": "../up"}, {"arm": "\x1b[31m"}, {"arm": 3}, {"flags": 3}, {"evil": 1}, None],
    ids=str,
)
def test_a_list_of_runs_names_none_outside_its_folder(job: Any, tmp_path: Path) -> None:
    (tmp_path / "comparison.yaml").write_text("seeds: 1\n")
    known = {"arm": "lora", "phase": "final", "recipe": "lora", "flags": {}, "folder": "runs/lora/final-seed0"}
    (tmp_path / "runs.json").write_text(json.dumps({"jobs": [job and known | job]}))
    with pytest.raises(UserError, match=r"runs.json is damaged"):
        read_comparison([tmp_path])


@pytest.mark.slow
def test_a_page_of_a_strangers_run_holds_its_names_as_text(outcome: Outcome, tmp_path: Path) -> None:
    source, encoder = "\x1b[31m</title><script>x</script>\x00", "a\nb\u202e|<b>"
    shutil.copytree(outcome.folder / "runs" / "lora", tmp_path / "runs" / "one")
    report = json.loads((tmp_path / "runs" / "one" / "report.json").read_text())
    report |= {"device": "cpu\x1b[31m<b>", "versions": {"torch<b>": "\x1b]0;x\x07"}}
    (tmp_path / "runs" / "one" / "report.json").write_text(json.dumps(report))
    cfg = LoraRecipe(data=DataConfig(source=source))
    (tmp_path / "runs" / "one" / "config.yaml").write_text(
        to_yaml(replace(cfg, model=replace(cfg.model, name=encoder)))
    )
    (tmp_path / "runs" / "one.json").write_text(json.dumps({"arm": "arm\x1b[31m\n<b>", "phase": "final"}))
    write_comparison(read_comparison([tmp_path / "runs"], reference="lora"), tmp_path / "page")
    for form in ("html", "md", "svg"):
        text = (tmp_path / "page" / f"comparison.{form}").read_text(encoding="utf-8")
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text), form
        assert form == "md" or not re.search(r"<(script|b)>", text)
        assert form == "svg" or r"arm\x1b[31m" in html.unescape(text).replace("\\\\", "\\"), form
    ElementTree.parse(tmp_path / "page" / "comparison.svg")


def test_what_is_told_of_a_name_or_an_address() -> None:
    assert printable("a\tb\x1b\x9b\u202e\u2028\ud800é中👩‍🚀") == r"a\tb\x1b\x9b\u202e\u2028\ud800é中👩‍🚀"
    told = safe_to_print(
        f"no\n  https://me:{PASSWORD}@x.org/a?sig=1 (https:/me:{PASSWORD}@x), {TOKEN}\x1b me@x.org a://b/c@d"
    )
    assert told == "no\n  https://***@x.org/a?*** (https:/***@x), hf_***\\x1b me@x.org a://b/c@d"
    assert safe_to_print("see hf_hub_download, or /home/me:/x@1") == "see hf_hub_download, or /home/me:/x@1"


PICKLES = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
# What unpickles, or runs what it is given, by the last part of its name.
RUNS = {
    "read_pickle",
    "load_state",
    "unsafe_load",
    "full_load",
    "load_all",
    "full_load_all",
    "unsafe_load_all",
}


def dangers(code: str, strict: bool) -> list[str]:
    """What code does that could run other people's: unpickle, evaluate, import by name, trust a repository."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
            if names == {"cpu_count", "joblib"}:
                continue
            found += [name for name in names if name.split(".")[0] in PICKLES | {"importlib.import_module"}]
            found += ["import_module"] if "import_module" in names else []
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {word.arg: getattr(word.value, "value", ...) for word in node.keywords}
        wrong = (
            name in ("eval", "exec", "__import__", "compile", "yaml.load", "os.system", "os.popen")
            or name.rpartition(".")[2] in RUNS
        )
        wrong |= name.startswith("torch.hub.") or (name == "torch.load" and given.get("weights_only") is not True)
        wrong |= any(given.get(word, False) is not False for word in ("trust_remote_code", "allow_pickle", "shell"))
        auto = re.fullmatch(r"(\w+\.)*Auto\w+\.from_pretrained|(\w+\.)*pipeline", name)
        found += (
            [f"{name}, line {node.lineno}"] if wrong or (strict and auto and "trust_remote_code" not in given) else []
        )
    return found


@pytest.mark.parametrize(
    "line",
    [
        *("import pickle", "from joblib import load", "from importlib import import_module", "eval(x)", "exec(x)"),
        *("torch.load(f)", "torch.load(f, weights_only=False)", "np.load(f, allow_pickle=True)", "yaml.unsafe_load(f)"),
        *(
            "yaml.load(f, Loader=x)",
            "accelerator.load_state(f)",
            "pd.read_pickle(f)",
            "os.system(x)",
            "torch.hub.load(x)",
        ),
        *("subprocess.run(x, shell=True)", "AutoConfig.from_pretrained(x)", "AutoModel.from_pretrained(x, **more)"),
        *("AutoConfig.from_pretrained(x, trust_remote_code=True)", "AutoModel.from_pretrained(x, trust_remote_code=y)"),
    ],
)
def test_the_search_for_dangers_finds_them(line: str) -> None:
    assert dangers(line, strict=True)


@pytest.mark.parametrize("part", ["peft_audio", "recipes", "benchmarks", "scripts"])
def test_nothing_here_unpickles_evaluates_or_trusts(part: str) -> None:
    files = sorted((ROOT / part).rglob("*.py"))
    found = {str(file): dangers(file.read_text(encoding="utf-8"), part in ("peft_audio", "recipes")) for file in files}
    # The package's own names, loaded when they are first used.
    lazy = str(ROOT / "peft_audio" / "__init__.py")
    # An exception of a DataLoader's worker process, pickled and unpickled by the same run.
    own = {str(ROOT / "peft_audio" / "data" / "loaders.py"): ["pickle"]} if part == "peft_audio" else {}
    assert {file: lines for file, lines in found.items() if lines and file != lazy} == own
    assert files
    assert part != "peft_audio" or found[lazy] == ["import_module"]
    for snippet in (ROOT / part).rglob("*.txt"):
        assert "trust_remote_code" not in snippet.read_text(encoding="utf-8")
