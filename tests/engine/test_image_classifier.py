"""A classifier of pictures: the one that ships as a recipe, made and asked."""

from pathlib import Path

import anyio
import msgspec
import pytest
from tests.pictures import draw, empty_png, part

from steelyard.engine.classifier_making import made_classifier
from steelyard.engine.encoder_loading import encoder_kind
from steelyard.engine.encoder_routes import EncoderRoutes
from steelyard.engine.image_classifier import load_image_classifier
from steelyard.engine.model_loading import LoadingChoices
from steelyard.engine.refusals import InvalidRequest, ServedModelNotFound

pytestmark = pytest.mark.slow
NAME = "shape-classifier"


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> EncoderRoutes:
    models_dir: Path = tmp_path_factory.mktemp("models")
    folder = made_classifier(NAME, models_dir, progress=print)
    assert encoder_kind(folder) == "image classifier"
    choices = LoadingChoices(models_dir=models_dir)
    return EncoderRoutes({}, {NAME: load_image_classifier(folder, name=NAME, choices=choices)})


def test_drawn_shapes_are_told_apart(routes: EncoderRoutes) -> None:
    shapes = ["disc", "square", "triangle"]
    pictures = [part(draw(shape, colour="blue")) for shape in shapes]
    pictures.append(part(draw("disc", kind="JPEG"), kind="jpeg"))

    answer = anyio.run(routes.classify, msgspec.json.encode({"model": NAME, "input": pictures}))

    assert [entry["label"] for entry in answer["data"]] == [*shapes, "disc"]
    assert answer["usage"] == {"prompt_tokens": 0, "total_tokens": 0, "items": 4}
    assert all(abs(sum(entry["scores"].values()) - 1) < 1e-4 for entry in answer["data"])


@pytest.mark.parametrize(
    "content", [b"", b"GIF89a", empty_png(100_000, 100_000), empty_png(64, 64), draw("disc")[:60]]
)
def test_what_is_no_picture_is_refused(routes: EncoderRoutes, content: bytes) -> None:
    body = msgspec.json.encode({"model": NAME, "input": [part(content)]})

    with pytest.raises(InvalidRequest):
        anyio.run(routes.classify, body)


def test_a_model_for_texts_reads_no_pictures(routes: EncoderRoutes) -> None:
    body = msgspec.json.encode({"model": "other", "input": [part(draw("disc"))]})

    with pytest.raises(ServedModelNotFound):
        anyio.run(routes.classify, body)
