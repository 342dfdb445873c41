"""Pictures and sounds: which model takes them, what the warm-up sends, what the canary asks."""

from __future__ import annotations

import base64
import io
import json
import struct
import sys
import wave
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.ranked_standin import RankedSGLang, RankedVLLM
from torpor import CanaryError, ConfigurationError, Deployment, EngineRequestError, Model
from torpor.engine_plugins.media import media_question, media_requests, model_media, warm_up_media
from torpor.platforms.local import LocalServer, Standby
from torpor.tasks.picture import generated_picture
from torpor.testing import Fault, StandIn
from torpor.testing.ports import unused_port
from torpor_vllm import VLLM

if TYPE_CHECKING:
    from pathlib import Path

CHAT = Deployment(name="d", model=Model(path="/m", served_name="m"), plugins=(StandIn(),))


@pytest.mark.parametrize(
    ("config", "media"),
    [
        ({"model_type": "qwen3"}, ()),
        ({"model_type": "qwen2_5_vl", "vision_config": {}}, ("image",)),
        ({"model_type": "llava", "vision_config": {"hidden_size": 8}, "image_token_index": 5}, ("image",)),
        ({"model_type": "qwen2_audio", "audio_config": {}}, ("audio",)),
        ({"model_type": "qwen3_omni", "thinker_config": {"vision_config": {}, "audio_config": {}}}, ("image", "audio")),
        ({"vision_config": None}, ()),
        ([], ()),
    ],
)
def test_a_models_configuration_says_what_it_takes(config: object, media: tuple[str, ...], tmp_path: Path) -> None:
    """As `config.json` has it."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert model_media(Model(path=str(tmp_path))) == media


def test_a_configuration_that_is_not_there_or_cannot_be_read_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub's cache counts where this process has one."""
    assert model_media(Model(path=str(tmp_path))) == ()
    (tmp_path / "config.json").write_text("{")
    assert model_media(Model(path=str(tmp_path))) == ()
    hub = Model(repo_id="a/b", revision="0" * 40)
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    assert model_media(hub) == ()
    folder = tmp_path / "models--a--b" / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"vision_config": {}}')
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert model_media(hub) == ("image",)


def test_a_generated_picture_is_a_png_of_its_size() -> None:
    """Signature, header, checked chunks, one row of three colours for each line."""
    data = generated_picture(32)
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", data[16:24])
    assert (width, height) == (32, 32)
    at, pixels = 8, b""
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, content = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + content)
        pixels += content if kind == b"IDAT" else b""
        at += 12 + length
    rows = zlib.decompress(pixels)
    assert len(rows) == 32 * (1 + 3 * 32)
    assert len(set(rows)) > 50


def test_the_requests_hold_pictures_and_sounds_as_data() -> None:
    """Two sizes of each; nothing is fetched."""
    requests = list(media_requests(CHAT, ("image", "audio")))
    assert [request.medium for request in requests] == ["image", "image", "audio", "audio"]
    contents = []
    for request in requests:
        part = request.body["messages"][0]["content"][0]  # type: ignore[index] # a list of messages
        url = part[part["type"]]["url"]
        head, _, data = url.partition(",")
        assert head in ("data:image/png;base64", "data:audio/wav;base64")
        contents.append(base64.b64decode(data))
    assert len(set(contents)) == 4
    with wave.open(io.BytesIO(contents[-1])) as sound:
        assert sound.getnframes() == 5 * sound.getframerate()


def client_of(*answers: httpx.Response) -> tuple[httpx.Client, list[dict[str, object]]]:
    """An engine with these answers, the last one for ever, and the bodies that it got."""
    seen: list[dict[str, object]] = []

    def respond(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content))
        return answers[min(len(seen), len(answers)) - 1]

    return httpx.Client(base_url="http://engine", transport=httpx.MockTransport(respond)), seen


def chat(text: str, *, logprobs: tuple[float, ...] = ()) -> httpx.Response:
    content = [{"token": "a", "top_logprobs": [{"token": "a", "logprob": number} for number in logprobs]}]
    choice = {"message": {"content": text}, "logprobs": {"content": content} if logprobs else None}
    return httpx.Response(200, json={"choices": [choice]})


def test_the_question_compares_the_first_choices_and_the_text_without_them() -> None:
    """The highest first; an engine that refuses pictures answers the same each time."""
    question = media_question(CHAT, "image")
    client, seen = client_of(chat("a", logprobs=(-3.0, -1.0)))
    assert question.ask(client).numbers == (-1.0, -3.0)
    assert (seen[0]["max_tokens"], seen[0]["top_logprobs"]) == (1, 5)
    client, _ = client_of(chat("a disc"))
    assert question.ask(client).exact == ("a disc",)
    client, _ = client_of(httpx.Response(400, text="no pictures"))
    assert question.ask(client).exact == ("refused with 400",)
    client, _ = client_of(httpx.Response(500, text="broken"))
    with pytest.raises(EngineRequestError, match="question with image got 500"):
        question.ask(client)


def test_an_engine_that_refuses_a_medium_is_told_and_one_that_fails_fails_the_start(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Clients are refused as well; a failure is not theirs."""
    client, _ = client_of(httpx.Response(400, text="At most 0 image(s)"))
    warm_up_media(client, CHAT, ("image",), timeout_s=5)
    log = capsys.readouterr()
    assert "warmup_media_refused" in log.out + log.err
    client, _ = client_of(httpx.Response(500, text="CUDA error"))
    with pytest.raises(EngineRequestError, match="leave 'image' out of the engine's option media"):
        warm_up_media(client, CHAT, ("image",), timeout_s=5)


def test_wrong_options_are_refused() -> None:
    """An unknown medium when the plugin is made; a medium of another task by `plan` and `doctor`."""
    with pytest.raises(ConfigurationError, match=r"VLLM\.media holds 'smell'; there are image, audio"):
        VLLM(media=("smell",))  # type: ignore[arg-type] # that is the test
    engine = VLLM(media=("image",))
    made = Deployment(name="d", model=Model(path="/m"), gpu="H100", task="embed", plugins=(engine,))
    assert [one.what for one in engine.check(made)] == ["media"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [RankedSGLang, RankedVLLM])
@pytest.mark.parametrize("fault", [None, Fault.SIGHT_LOST_AFTER_WAKE])
@pytest.mark.fault("what a model sees with is lost in a sleep", area="canary", outcome="refused")
def test_a_model_that_sees_is_asked_about_a_picture_after_each_wake(
    kind: type[RankedSGLang | RankedVLLM], fault: Fault | None, tmp_path: Path
) -> None:
    """Its text is as before; only the question about the picture notices."""
    dialect = "vllm" if kind is RankedVLLM else "sglang"
    engine = kind(
        version=kind.supported_versions[-1],
        python=sys.executable,
        device="cpu",
        warmup_prompt_words=(4,),
        warmup_burst=0,
        media=("image", "audio"),
        extra_args=("--dialect", dialect, *(("--fault", str(fault)) if fault else ())),
    )
    model = Model(path="/m", served_name="standin")
    deployment = replace(CHAT, model=model, plugins=(engine,), port=unused_port(), stop_timeout_s=2.0)
    server = LocalServer(deployment, backend=Standby(), root=tmp_path)
    try:
        server.cold_start()
        assert server.boot.canary is not None
        assert set(server.boot.canary.questions) == {f"{engine.plugin_name}: {one}" for one in ("image", "audio")}
        server.boot.sleep(for_snapshot=False)
        if fault is None:
            server.boot.wake()
            assert server.boot.serving
        else:
            with pytest.raises(CanaryError, match=f"{engine.plugin_name}: image"):
                server.boot.wake()
    finally:
        server.stop()
