"""The wheel, in an environment of its own: a client of a server needs neither torch nor transformers."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from remote_cases import Call, Token, answer, serving, whole

ROOT = Path(__file__).parent.parent
NOT_THERE = (
    "accelerate",
    "functorch",
    "gguf",
    "llguidance",
    "peft",
    "safetensors",
    "sentence_transformers",
    "ssd_",
    "tokenizers",
    "torch",
    "transformers",
)
"""What the names of packages begin with that the client's environment does not have."""

CLIENT = """
import importlib.util, sys
from pydantic import BaseModel
assert importlib.util.find_spec("torch") is importlib.util.find_spec("transformers") is None
import ssd_engine
from ssd_engine.errors import ModelLoadError
from ssd_integrations.langchain import ChatSSD
from ssd_integrations.llama_index import SSDLLM

class City(BaseModel):
    name: str

def weather(city: str) -> str:
    "Weather of a city."
    return "sunny"

url, kind = sys.argv[1:]
model = ChatSSD(base_url=url)
if kind == "text":
    message = model.invoke("Count.")
    assert message.text == "One two three four five", message
    assert message.response_metadata["ssd"]["rounds"] == 3
    response = SSDLLM(base_url=url).complete("Count.")
    assert response.text == message.text and response.raw["ssd"]["rounds"] == 3
    assert "".join(part.delta for part in SSDLLM(base_url=url).stream_complete("Count.")) == message.text
    for pair in (dict(model="a", draft="b"), dict(preset="qwen2.5-coder-1.5b")):
        try:
            ChatSSD(**pair).invoke("Count.")
        except ModelLoadError as error:
            assert "torch and transformers" in str(error), error
        else:
            raise AssertionError("a pair without torch")
elif kind == "call":
    (call,) = model.bind_tools([weather]).invoke("Weather in Lyon?").tool_calls
    assert call["name"] == "weather" and call["args"] == {"city": "Lyon"}
else:
    assert model.with_structured_output(City).invoke("Which city?") == City(name="Lyon")
print("well", ssd_engine.__version__)
"""

WORDS = {
    "text": ("One", " two", " three", " four", " five"),
    "call": ("<tool_call>", '{"name": "weather", ', '"arguments": {"city": "Lyon"}}', "</tool_call>"),
    "object": ('{"name":', ' "Lyon"}'),
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    assert list(folder.glob("*.tar.gz"))
    return built


@pytest.fixture(scope="module")
def client(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel and this one's other packages, but those `NOT_THERE`."""
    folder = tmp_path_factory.mktemp("client") / "env"
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    packages = folder / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        is_wanted = not path.name.startswith(NOT_THERE) and path.suffix != ".pth"
        if is_wanted and not (packages / path.name).exists():
            (packages / path.name).symlink_to(path)
    return python


@pytest.mark.parametrize("kind", ["text", "call", "object"])
def test_a_client_without_torch_gets_answers_calls_and_objects(client: Path, kind: str) -> None:
    rounds: list[list[Token]] = [[(place, text, 9)] for place, text in enumerate(WORDS[kind], 5)]
    if kind == "text":
        rounds = [rounds[0], [*rounds[1], *rounds[2]], [*rounds[3], *rounds[4]]]
        rounds = [[(token_id, text, 9 if i == 0 else 1) for i, (token_id, text, _) in enumerate(r)] for r in rounds]

    def script(call: Call) -> None:
        whole(call, answer(rounds))

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with serving(script) as server:
        command = [str(client), "-c", CLIENT, server.url, kind]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=client.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("well "), done.stdout


def test_doctor_tells_what_a_client_without_torch_lacks(client: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(client), "-c", "from ssd_engine.cli import main; main()", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=client.parent)
    assert done.returncode == 1, done.stderr
    said = " ".join(done.stdout.split())
    assert 'torch not installed (pairs in this process): pip install "ssd-integrations"' in said
    assert "a pair in this process needs torch and transformers: pip install torch transformers" in said
