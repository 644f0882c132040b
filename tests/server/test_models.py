"""Several models of one server: whose card a job is held against, who draws it, and in which order."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import openai
import pytest
from dispatching import dispatching, ended, run, until
from PIL import Image

from hwaga.card_styles import Style
from hwaga.cards import ASSETS, ModelCard
from hwaga.engine import Engine
from hwaga.image_file import encode
from hwaga.loras import LoraLibrary
from hwaga.model_lookup import find_card
from hwaga.prompt import Library
from hwaga.request import ImageRequest
from hwaga.server.process import WORKER
from hwaga.server.served import Served
from hwaga.server.stay import MOST
from hwaga.server.store import SqliteStore
from hwaga.settings import Settings

if TYPE_CHECKING:
    from conftest import Running

Serve = Callable[..., contextlib.AbstractContextManager["Running"]]
CRAMPED = (sys.executable, str(Path(__file__).with_name("cramped_worker.py")))


def second_card() -> ModelCard:
    """The bundled model under another name, with a style whose LoRA is not there, other limits, and said to be guided."""
    card = find_card("mini", Path("models"))
    limits = replace(card.limits, tokens=200, max_steps=30, listed_sizes_only=False, min_side=64, max_side=512)
    aspects = {"3:4": (192, 256)}
    return replace(
        card,
        guidance=7.0,
        samplers=("dpmpp_2m_karras", "euler"),
        name="second",
        styles=MappingProxyType({"ink": Style(MappingProxyType({"en": "Ink"}), "loras/ink.safetensors")}),
        limits=limits,
        aspects=aspects,
        own_words_only=False,
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, serve_from: Serve) -> Iterator[Running]:
    cards = [find_card("mini", Path("models")), second_card()]
    with serve_from(tmp_path_factory.mktemp("served"), models=["mini", "second"], cards=cards) as found:
        yield found


def test_all_are_listed(server: Running) -> None:
    assert [model.id for model in server.openai().models.list()] == ["mini", "second"]
    assert server.openai().models.retrieve("second").id == "second"
    status = server.client.get("/v1/status").json()
    assert [model["name"] for model in status["models"]] == ["mini", "second"]
    assert status["model"] == status["models"][0]
    assert status["models"][1]["aspects"] == {"3:4": [192, 256]}


def test_a_job_is_of_its_model(server: Running) -> None:
    made = [server.submit(prompt="a cat", **more) for more in ({}, {"model": "mini"}, {"model": "second"})]
    assert [job["model"] for job in made] == ["mini", "mini", "second"]
    done = [server.ended(job["id"]) for job in made]
    assert [job["status"] for job in done] == ["succeeded"] * 3
    again = server.client.post(f"{done[2]['images'][0]['url']}/again", json={}).json()
    assert again["model"] == "second"
    pictures = server.openai().images.generate(model="second", prompt="a cat", size="336x192")
    assert pictures.data
    newest = server.client.get("/v1/jobs?limit=1").json()["data"][0]
    assert (newest["model"], newest["status"]) == ("second", "succeeded")
    form = {"prompt": (None, "a cat"), "model": (None, "second"), "image": ("a.png", png())}
    assert server.client.post("/v1/jobs", files=form).json()["model"] == "second"
    figures = server.client.get("/metrics").text
    assert 'hwaga_model_jobs_total{model="mini",status="succeeded"} 2.0' in figures
    assert 'hwaga_model_weights_bytes{model="second",process="worker 0"} 0.0' in figures


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "PNG")
    return buffer.getvalue()


def test_again_is_of_the_model_that_the_picture_names(serve: Serve, tmp_path: Path) -> None:
    """Also where the job names none, as it is of a server of one model, and that is not the default any more."""
    request = {"prompt": "a cat", "seed": 7}
    drawn_by = {"model": "second", "request": request}
    with contextlib.closing(SqliteStore(tmp_path / "server")) as store:
        store.submit("text2image", {"request": request})
        job = store.claim("worker")
        assert job is not None
        picture = encode(Image.new("RGB", (64, 64)), "png", made_with=drawn_by, parameters="a picture")
        path = f"/v1/images/{store.finish(job.id, 1, [picture]).images[0]}/again"
    cards = [find_card("mini", Path("models")), second_card()]
    with serve(models=["mini", "second"], cards=cards) as running:
        assert running.client.post(path, json={}).json()["model"] == "second"
    with serve(models=["mini"], cards=cards[:1]) as running:
        refused = running.client.post(path, json={})
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
        assert "the model 'second', which is not served" in refused.json()["error"]["message"]


def test_the_card_of_its_model_counts(server: Running) -> None:
    def refusal(**body: Any) -> str:
        answer = server.client.post("/v1/jobs", json=body)
        assert answer.status_code == 400, answer.text
        return str(answer.json()["error"]["message"])

    assert "only the sizes that it was trained on" in refusal(prompt="a cat", size="128x64")
    server.submit(prompt="a cat", size="128x64", model="second")
    assert "second takes 30 steps at most" in refusal(prompt="a cat", steps=31, model="second")
    assert "the limit is 200" in refusal(prompt="word " * 150, model="second")
    server.submit(prompt="word " * 150)

    def composed(**body: Any) -> Any:
        return server.client.post(
            "/v1/prompts/compose", json={"prompt": "a cake", "style": "watercolor", **body}
        ).json()

    assert (composed()["token_limit"], composed(model="second")["token_limit"]) == (512, 200)
    assert composed()["prompt"] == "a cake" != composed(model="second")["prompt"], "which takes the packs' words"
    assert server.client.post("/v1/prompts/compose", json={"prompt": "a cake", "guidance": 0}).status_code == 400
    assert "draws without guidance" in composed(guidance=3)["error"]["message"]
    assert composed(model="second", guidance=1)["prompt"] == composed(model="second")["prompt"]

    def names(path: str) -> dict[str, Any]:
        return {entry["name"]: entry.get("lora") for entry in server.client.get(path).json()}

    assert names("/v1/styles")["anime"] == "flat"
    assert names("/v1/styles?model=second")["anime"] is None
    assert "ink" not in names("/v1/styles?model=second"), "whose LoRA is not there"
    own = {model["name"]: model["styles"] for model in server.client.get("/v1/status").json()["models"]}
    assert own == {"mini": ["realistic", "semi_realistic", "anime"], "second": []}
    assert "ink.safetensors is not there. Put the file there; or go on" in refusal(
        prompt="x", style="ink", model="second"
    )
    assert len(names("/v1/loras")) > len(names("/v1/loras?model=second")) == 1


def test_guidance_is_for_models_that_have_it(server: Running) -> None:
    ways = {"negative": "blurry", "guidance": 3.5, "sampler": "euler"}
    job = server.submit(prompt="a cat", model="second", **ways)
    assert ways.items() <= job["request"].items()
    assert server.ended(job["id"])["status"] == "succeeded"
    server.openai().images.generate(prompt="a cat", model="second", extra_body=ways)
    edited = {"prompt": "a cat", "model": "second", **{name: str(value) for name, value in ways.items()}}
    assert server.client.post("/v1/images/edits", data=edited, files={"image": png()}).status_code == 200
    first, second, _ = server.client.get("/v1/jobs?limit=3").json()["data"]
    assert ways.items() <= first["request"].items()
    assert ways.items() <= second["request"].items()
    for name, value in ways.items():
        for path in ("/v1/jobs", "/v1/images/generations"):
            refused = server.client.post(path, json={"prompt": "a cat", name: value})
            assert refused.status_code == 400
            remedy = "leave sampler out" if name == "sampler" else f"Leave {name} out; what the picture should not show"
            assert remedy in refused.json()["error"]["message"]
    wrong: list[tuple[str, Any]] = [("guidance", 0.5), ("guidance", 31), ("sampler", "ddim"), ("negative", " ")]
    for name, value in wrong:
        refused = server.client.post("/v1/jobs", json={"prompt": "a cat", "model": "second", name: value})
        assert refused.status_code == 400
        assert name in refused.json()["error"]["message"]
    models = {model["name"]: model for model in server.client.get("/v1/status").json()["models"]}
    assert (models["mini"]["guidance"], models["mini"]["samplers"]) == (None, [])
    assert (models["second"]["guidance"], models["second"]["samplers"]) == (7.0, ["dpmpp_2m_karras", "euler"])


def test_the_negative_prompt_is_checked_and_counted_where_it_is_used(server: Running) -> None:
    long = {"prompt": "a cat", "model": "second", "negative": "word " * 150}
    for path in ("/v1/jobs", "/v1/images/generations"):
        refused = server.client.post(path, json=long)
        assert refused.status_code == 400
        assert refused.json()["error"]["message"].startswith("The negative prompt has")
        assert "the limit is 200" in refused.json()["error"]["message"]

    def tokens(**more: Any) -> int:
        made = server.openai().images.generate(prompt="a cat", model="second", extra_body=more)
        assert made.usage
        return made.usage.input_tokens

    alone = tokens()
    assert tokens(guidance=1) == alone < tokens(negative="blurry")


def test_the_negative_prompt_that_packs_compose_is_counted_too(tmp_path: Path) -> None:
    card, settings = find_card("sdxl", tmp_path), Settings(data_dir=str(tmp_path))
    counted: list[str] = []

    def count(text: str, _: int) -> int:
        counted.append(text)
        return len(text)

    served = Served(card, Library.load(settings.packs), LoraLibrary(settings.loras), count)
    request = ImageRequest("a cake", style="watercolor", negative="people")
    composition = served.composed(request, card.limits.tokens)
    assert composition.negative
    assert served.check(request) == len(composition.text) + len(counted[-1])
    assert counted[-1] == f"people, {composition.negative}"
    without = request.replace(guidance=1, negative=None)
    assert served.check(without) == len(composition.text)
    assert served.composed(without, card.limits.tokens).negative is None
    assert "no negative prompt at guidance 1" in served.composed(without, card.limits.tokens).notes[-1]


def test_a_model_that_is_not_there(server: Running) -> None:
    message = "There is no model 'sdxl' here. There is mini, second; leave model out to use the first."
    body = {"prompt": "a cat", "model": "sdxl"}
    answers = [
        *(
            server.client.post(path, json=body)
            for path in ("/v1/jobs", "/v1/prompts/compose", "/v1/images/generations")
        ),
        server.client.post("/v1/images/edits", data=body, files={"image": png()}),
        *(server.client.get(path) for path in ("/v1/models/sdxl", "/v1/styles?model=sdxl", "/v1/loras?model=sdxl")),
    ]
    for answer in answers:
        assert answer.status_code == 404
        kind = {"type": "invalid_request_error", "param": "model", "code": "model_not_found"}
        assert answer.json() == {"error": {"message": message, **kind}}
    with pytest.raises(openai.NotFoundError):
        server.openai().images.generate(**body)


def test_the_same_request_to_another_model_is_another(server: Running) -> None:
    def made(**more: Any) -> Any:
        return server.client.post("/v1/jobs", json={"prompt": "a cat", **more}, headers={"Idempotency-Key": "one"})

    first = made().json()
    assert made(model="mini").json()["id"] == first["id"]
    assert made(model="second").status_code == 409


# The order


def drawn(folder: Path) -> list[tuple[int, str]]:
    """Of each job in the order of their starts: how many were drawn together, and with which model."""
    lines = [line.split() for line in (folder / "log").read_text().splitlines()]
    return [(int(together), model) for together, model in lines]


def order(folder: Path, models: str, batch: int, owners: str = "") -> list[tuple[int, str]]:
    """Submits jobs of models while the only worker is busy, and lets it go on when all of them wait."""

    async def test() -> None:
        async with dispatching(folder / "server", models=["mini", "second"], batch=batch) as dispatcher:
            gate = {"until": str(folder / "gate"), "log": str(folder / "begun")}
            await dispatcher.submit("text2image", {"model": "a", **gate})
            await until((folder / "begun").exists)  # once it is held, others may still come into its batch
            body = {"log": str(folder / "log"), "steps": 1}
            jobs = [
                await dispatcher.submit("text2image", {"model": model, **body}, owner=owner)
                for model, owner in zip(models, owners or " " * len(models), strict=True)
            ]
            (folder / "gate").touch()
            for job in jobs:
                assert (await ended(dispatcher, job)).status == "succeeded"

    run(test)
    return drawn(folder)


@pytest.mark.usefixtures("fake_worker")
def test_no_batch_is_of_two_models(tmp_path: Path) -> None:
    found = order(tmp_path, "aababb", 4)
    assert found == [(3, "a")] * 3 + [(3, "b")] * 3


@pytest.mark.usefixtures("fake_worker")
def test_the_loaded_model_goes_first_and_not_for_ever(tmp_path: Path) -> None:
    found = [model for _, model in order(tmp_path, "ba" * 12, 1)]
    # Then the other one, whose turn it is, for as long; and what is left.
    assert "".join(found) == "a" * MOST + "b" * (MOST + 1) + "a" * 4 + "b" * 3


@pytest.mark.usefixtures("fake_worker")
def test_who_asks_for_the_other_model_is_not_kept_waiting(tmp_path: Path) -> None:
    """However many jobs of the loaded one others have."""
    found = [model for _, model in order(tmp_path, "a" * 30 + "b", 1, "x" * 30 + "y")]
    assert found.index("b") <= MOST


# The real worker


def test_two_models_in_room_for_one_and_a_half(serve: Serve, tmp_path: Path) -> None:
    folder = tmp_path / "second"
    folder.mkdir()
    for path in (ASSETS / "mini").iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "card.toml").unlink()
    card = (ASSETS / "mini" / "card.toml").read_text()
    (folder / "card.toml").write_text(card.replace('name = "mini"', 'name = "second"', 1))
    models = ["mini", str(folder)]
    cards = [find_card(model, tmp_path) for model in models]
    request = {"prompt": "a red apple on a yellow background", "steps": 1, "seed": 7}
    with Engine.open("mini", device="cpu") as engine:
        expected = hashlib.sha256(engine.generate(ImageRequest(**request)).image.tobytes()).hexdigest()
    with serve(models=models, cards=cards, worker=CRAMPED) as running:
        running.ready()
        plans = {plan["model"]: plan for plan in running.client.get("/v1/plan").json()["data"]}
        assert plans["second"]["held_bytes"] == 0 < plans["second"]["away_bytes"], "it waits for its first job"
        for turn in range(5):
            name, other = [["mini", "second"], ["second", "mini"]][turn % 2]
            job = running.ended(running.submit(model=name, **request)["id"])
            assert job["status"] == "succeeded", job
            data = running.client.get(job["images"][0]["url"]).content
            with Image.open(io.BytesIO(data)) as image:
                assert hashlib.sha256(image.tobytes()).hexdigest() == expected
                assert json.loads(image.info["hwaga"])["model"] == name
            if turn:
                running.until(lambda name=name: shown(running, name)["away_bytes"] == 0)
                plan = shown(running, name)
                (neighbour,) = plan["neighbours"]
                assert neighbour["model"] == other
                assert neighbour["leaves_bytes"] > 0
                assert shown(running, other)["away_bytes"] > 0
                assert all(phase["others"] == neighbour["stays_bytes"] for phase in plan["phases"])
        unknown = asyncio.run_coroutine_threadsafe(
            running.dispatcher.submit("text2image", {"model": "gone", "request": request}), running.loop
        ).result()
        assert running.ended(running.submit(prompt="a cat", steps=1)["id"])["status"] == "succeeded"
        assert running.store.get(unknown.id).status == "queued"


def test_two_families(serve: Serve, tmp_path: Path) -> None:
    """What a request says of guidance, styles and a picture reaches SDXL's networks, and its pictures tell of it."""
    folder = pytest.importorskip("sdxl_reference").random_sdxl(tmp_path / "tiny")
    models = ["mini", str(folder)]
    cards = [find_card(model, tmp_path) for model in models]
    words = {"prompt": "a (red:1.2) apple", "style": "watercolor", "avoid": ["text"], "seed": 7, "steps": 2}
    led = {"negative": "fog", "guidance": 4.5, "sampler": "dpmpp_2m_karras"}
    with Engine.open(folder, device="cpu", dtype="float32", settings=Settings(data_dir=str(tmp_path))) as engine:
        request = ImageRequest(**words, **led, width=64, height=48)
        drawn = engine.generate(request)
        redrawn = engine.generate(request.replace(image=drawn.image, width=None, height=None, strength=0.6))
    with serve(models=models, cards=cards, worker=WORKER) as running:
        job = running.submit(model="tiny-xl", size="64x48", previews=True, **words, **led)
        mini = running.submit(prompt="a cat", steps=1)
        made = running.ended(job["id"])
        assert (made["status"], running.ended(mini["id"])["status"]) == ("succeeded", "succeeded"), made
        assert '"preview": "' in running.client.get(f"/v1/jobs/{job['id']}/events").text
        data = running.client.get(made["images"][0]["url"]).content
        form = {
            name: (None, str(value)) for name, value in {**words, **led, "strength": 0.6}.items() if name != "avoid"
        }
        files = {"model": (None, "tiny-xl"), "avoid": (None, "text"), "image": ("a.png", data), **form}
        answer = running.client.post("/v1/jobs", files=files)
        assert answer.status_code == 202, answer.text
        again = running.ended(answer.json()["id"])
        assert again["status"] == "succeeded", again
        second = running.client.get(again["images"][0]["url"]).content
        plans = {plan["model"]: plan for plan in running.client.get("/v1/plan").json()["data"]}
        assert [part["name"] for part in plans["tiny-xl"]["parts"]] == ["text_encoder", "denoiser", "vae"]
    for picture, expected in ((data, drawn), (second, redrawn)):
        with Image.open(io.BytesIO(picture)) as image:
            assert image.tobytes() == expected.image.tobytes()
            told = json.loads(image.info["hwaga"])
        assert told["model"] == "tiny-xl"
        assert led.items() <= told["request"].items()
        assert "text" in told["request"]["composed"]["negative"]


def test_jobs_wait_for_a_model_that_is_not_served(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    card = find_card("mini", Path("models"))
    with serve(models=["mini", "second"], cards=[card, second_card()], queue_limit=2) as running:
        running.dispatcher._supervisors[0]._stay.took("second")
        asyncio.run_coroutine_threadsafe(running.dispatcher.drain(60), running.loop).result(60)
        kept = [
            running.store.submit("text2image", {"model": name, "request": {"prompt": "a cat"}, "previews": False})
            for name in ("second", "second")
        ]
    with serve(models=["mini"], cards=[card], queue_limit=2) as running:
        # They are in nobody's way: neither of the queue's order nor of its limit.
        mine = [running.submit(prompt=json.dumps({"delay": 0.05})) for _ in range(1)]
        assert all(running.ended(job["id"])["status"] == "succeeded" for job in mine)
        for job in kept:
            shown = running.client.get(f"/v1/jobs/{job.id}").json()
            assert (shown["status"], shown["position"], shown["model"]) == ("queued", None, "second")
            assert "Start the server with --model second" in shown["reason"]
        listed = running.client.get("/v1/jobs").json()["data"]
        assert [entry["reason"] is None for entry in listed] == [True, False, False]
        running.ready()
        assert running.client.get("/health/ready").json() == {"status": "ready", "waiting_for_models": {"second": 2}}
        assert [record.getMessage() for record in caplog.records if "--model second" in record.getMessage()] == [
            "The model 'second' is not served, and its jobs wait. Start the server with --model second to draw them. "
            "They are 2."
        ]
        assert running.client.delete(f"/v1/jobs/{kept[1].id}").json()["status"] == "cancelled"
    with serve(models=["mini", "second"], cards=[card, second_card()]) as running:
        done = running.ended(kept[0].id)
        assert (done["status"], done["model"], done["reason"]) == ("succeeded", "second", None)
        running.ready()
        assert running.client.get("/health/ready").json()["waiting_for_models"] == {}


def test_a_damaged_model_fails_its_own_jobs_alone(serve: Serve, tmp_path: Path) -> None:
    folder = tmp_path / "second"
    shutil.copytree(ASSETS / "mini", folder)
    card = (folder / "card.toml").read_text()
    (folder / "card.toml").write_text(card.replace('name = "mini"', 'name = "second"', 1))
    (weights, *_) = folder.glob("transformer/*.safetensors")
    models = ["mini", str(folder)]
    cards = [find_card(model, tmp_path) for model in models]
    weights.write_bytes(weights.read_bytes()[:1000])
    for order in (slice(None), slice(None, None, -1)):  # also where it is the default
        with serve(models=models[order], cards=cards[order], worker=WORKER) as running:
            bad, good = (running.submit(prompt="a cat", steps=1, model=name)["id"] for name in ("second", "mini"))
            assert running.ended(good)["status"] == "succeeded"
            failed = running.ended(bad)
            assert (failed["status"], running.dispatcher.restarts) == ("failed", 0)
            assert str(tmp_path) not in failed["error"]["message"]
            assert weights.name in failed["error"]["message"]


def shown(running: Running, model: str) -> dict[str, Any]:
    plans = {plan["model"]: plan for plan in running.client.get("/v1/plan").json()["data"]}
    return dict(plans[model])
