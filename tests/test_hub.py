"""A base encoder by its Hub id, from a stand-in that speaks the Hub's download protocol on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from conftest import tiny_config
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2ForPreTraining

COMMIT = "0123456789abcdef0123456789abcdef01234567"
# Trains nothing: loads, saves an adapter, and loads that by the commit in its record.
SCRIPT = """
import json, sys
from pathlib import Path
from peft_audio.adapter_record import describe_adapter
from peft_audio.adapters import load_adapter, save_adapter
from peft_audio.config import LoraConfig, LoraRecipe, ModelConfig
from peft_audio.models import identify_base, load_classifier, load_extractor
from peft_audio.strategies import apply_lora
cfg = LoraRecipe(model=ModelConfig(name="org/tiny"))
model = load_classifier(cfg.model, ["a", "b"])
base, extractor = identify_base(cfg.model, model), load_extractor(cfg.model)
model, trained = apply_lora(model, LoraConfig())
record = describe_adapter(cfg, base, ["a", "b"], extractor, "lora", {})
folder = save_adapter(Path(sys.argv[1]), model, trained, extractor, record)
print(json.dumps({"name": base.name, "commit": base.commit, "loaded": load_adapter(folder).record.base.commit}))
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a Hub with one repository, `org/tiny`: an old pickled checkpoint; and the requests it got."""
    folder = tmp_path / "repository"
    torch.manual_seed(0)
    model = Wav2Vec2ForPreTraining(tiny_config())
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False).save_pretrained(folder)
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def do_POST(self) -> None:
            self.answer(body=False)

        def answer(self, body: bool) -> None:
            requests.append(f"{self.command} {self.path}")
            parts = self.path.split("?")[0].strip("/").split("/")
            file = folder / parts[-1]
            served = parts[:3] == ["org", "tiny", "resolve"] and parts[3] in ("main", COMMIT) and file.is_file()
            content = file.read_bytes() if served else b""
            self.send_response(200 if served else 404)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(content)))
            if served:
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            else:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *ignored: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", requests
    server.shutdown()
    server.server_close()


def test_a_base_from_the_hub_is_pinned_to_its_commit(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    address, requests = hub
    environment = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    child = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env=os.environ | environment | {"HF_HUB_OFFLINE": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert json.loads(child.stdout.splitlines()[-1]) == {"name": "org/tiny", "commit": COMMIT, "loaded": COMMIT}
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["revision"] == COMMIT
    readme = (tmp_path / "adapter" / "README.md").read_text()
    assert 'BASE = "org/tiny"' in readme and f'revision="{COMMIT}"' in readme
    # transformers would ask for the repository, and then for a pull request that converts the old checkpoint.
    assert not [request for request in requests if "/api/models/" in request or request.startswith("POST")], requests
    # Once pinned, only the commit is asked for: a push in the middle of a run changes nothing.
    assert {request for request in requests if "/resolve/main/" in request} <= {
        "HEAD /org/tiny/resolve/main/config.json",
        "GET /org/tiny/resolve/main/config.json",
    }
