"""The dashboard of lab 03: real runs on tiny scenarios, without a browser."""

import csv
import io
import os
import re
from base64 import b64decode
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fedgen_lab.dashboards import lora_dashboard
from fedgen_lab.dashboards.lora_live import duration, estimate_seconds
from fedgen_lab.lora.export import read_provenance
from fedgen_lab.scenario import Scenario

pytestmark = pytest.mark.usefixtures("small_base")
SMALL = {"num_clients": 2, "rounds": 2, "local_steps": 1, "batch_size": 2, "pictures_per_client": 4}


def show(**changes):
    with redirect_stdout(io.StringIO()):  # without a notebook, display() prints
        return lora_dashboard(**{**SMALL, **changes})


@pytest.fixture
def threads(monkeypatch):
    monkeypatch.delenv("FEDGEN_RUN", raising=False)


@pytest.fixture(scope="module")
def finished():
    """A dashboard whose first run has ended."""
    before = os.environ.get("FEDGEN_RUN")
    os.environ["FEDGEN_RUN"] = "inline"
    yield show()
    os.environ.pop("FEDGEN_RUN")
    if before is not None:
        os.environ["FEDGEN_RUN"] = before


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sixteen captioned pictures of two groups, and one that is broken."""
    from PIL import Image

    from fedgen_lab.pictures.sprites import draw_sprites

    made = tmp_path_factory.mktemp("own")
    sprites = draw_sprites(16, seed=5)
    with open(made / "list.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "caption", "group"])
        for number, (image, caption) in enumerate(
            zip(sprites.images, sprites.captions, strict=True)
        ):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(made / f"{number}.png")
            rows.writerow([f"{number}.png", caption, "first" if number < 8 else "second"])
        rows.writerow(["broken.png", "nothing", "second"])
    (made / "broken.png").write_bytes(b"not a picture")
    return made


def fill(own, path, concept="group"):
    own.path.value, own.caption_file.value = str(path), "list.csv"
    own.file_column.value, own.text_column.value = "file", "caption"
    own.concept.value = concept


def test_a_run_ends_with_losses_pictures_of_every_model_and_words(finished):
    run = finished.live.latest()
    assert list(run.losses) == [0, 1, 2]
    assert list(run.pictures) == ["base model", "federated", "client 0", "client 1"]
    assert finished.live.status.sentence.startswith(
        "Done: 2 of 2 rounds are complete. Held-out loss"
    )
    strip = finished.live.pictures.value
    assert strip.count("<img") == 4 * len(run.prompts)
    for prompt in run.prompts:
        assert f'alt="base model: {prompt}"' in strip and f'alt="federated: {prompt}"' in strip


def test_the_adapter_of_the_run_can_be_downloaded_in_two_spellings(finished, tmp_path):
    take_home = finished.take_home[finished.live]
    assert finished.take_home[finished.own.panel].button.disabled
    assert finished.live.box.children[0].children[-1] is take_home.button
    take_home.button.click()
    links = re.findall(
        r'<a download="(.*?)" href="data:application/octet-stream;base64,(.*?)">(.*?)</a>',
        take_home.links.value,
    )
    run, files = finished.live.latest(), {}
    for name, content, words in links:
        (tmp_path / name).write_bytes(b64decode(content))
        files[name] = load_file(tmp_path / name)
        assert name in words and read_provenance(tmp_path / name)["rounds"] == "2"
    assert "rule fedit, rounds 2, clients 2, base tiny-sd, seed 0" in take_home.links.value
    for name, tensor in run.adapter.items():
        spelt = f"unet.{name.replace('.default', '')}"
        assert torch.equal(files["fedit-diffusers.safetensors"][spelt], tensor)
    assert all(name.startswith("lora_unet_") for name in files["fedit-kohya.safetensors"])


def test_the_charts_say_in_words_what_they_show(finished):
    assert (
        "Live, on this machine (2 clients, skew 0, 1 local steps, seed 0): round 2 of 2"
        in finished.loss_chart.sentence
    )
    assert "Everyone waits for client" in finished.gantt.sentence
    assert finished.gantt.sentence.startswith("Round 2 takes")


def test_the_bandwidth_knob_retimes_the_finished_run_and_trains_nothing(finished):
    run = finished.live.latest()
    losses, seconds = dict(run.losses), run.table(5e6)["wireless_seconds"].iloc[-1]
    finished.axis.value = "wireless seconds"
    finished.bandwidth.set(0.1)
    assert "at 0.1 MHz" in finished.loss_chart.sentence
    assert run.table(0.1e6)["wireless_seconds"].iloc[-1] > 2 * seconds
    assert run.losses == losses and finished.live.latest() is run
    finished.bandwidth.set(5)


def test_megabytes_are_what_the_trace_counted(finished):
    run = finished.live.latest()
    assert run.table(5e6)["megabytes"].iloc[-1] == pytest.approx(
        run.trace.frame()["bytes"].sum() / 1e6
    )
    assert run.table(5e6)["megabytes"].iloc[0] == 0


def test_any_round_can_be_put_on_the_clock(finished):
    finished.round.set(1)
    assert finished.gantt.sentence.startswith("Round 1 takes")
    finished.round.set(2)
    assert finished.gantt.sentence.startswith("Round 2 takes")


@pytest.mark.parametrize("end", ["low", "high"])
def test_every_knob_may_be_pushed_to_both_ends(finished, end):
    values = {knob: knob.value for knob in finished.knobs}
    for knob in finished.knobs:
        knob.set(knob.number.min if end == "low" else knob.number.max)
    scenario = finished.scenario()
    assert scenario.num_clients in (2, 16) and scenario.skew in (0.0, 1.0)
    assert "rounds with these knobs take about" in finished.estimate.value
    for knob, value in values.items():
        knob.set(value)


def test_a_stopped_run_keeps_what_it_computed_and_another_can_follow(threads):
    dashboard = show(rounds=50)
    panel = dashboard.live
    panel.start_button.click()
    while panel.running() and (not panel.runs or panel.latest().rounds < 1):
        panel.job.join(0.02)
    assert panel.start_button.disabled
    panel.stop_button.click()
    assert panel.job.join(60)
    run = panel.latest()
    assert 1 <= run.rounds < 50
    assert panel.status.sentence.startswith(f"Stopped: {run.rounds} of 50 rounds are complete.")
    assert panel.stop_button.disabled and not panel.start_button.disabled
    panel.start_button.click()
    while panel.running() and len(panel.runs) < 2:
        panel.job.join(0.02)
    panel.stop_button.click()
    assert panel.job.join(60)
    assert panel.runs[0] is run


def test_two_dashboards_do_not_disturb_each_other(threads):
    first, second = show(rounds=50), show()
    first.live.start()
    second.live.start()
    assert "Another run is going on" in second.live.status.sentence
    assert not second.live.start_button.disabled
    assert first.live.running()
    first.live.stop()
    assert first.live.job.join(60) and first.live.job.state == "cancelled"
    assert second.live.runs == []


def test_own_pictures_are_read_shown_and_their_columns_offered(finished, folder):
    own = finished.own
    fill(own, folder, concept="")
    own.read_button.click()
    skipped = own.reading.result[0].attributes.attrs["skipped"]
    assert own.status.sentence == (
        f"16 pictures with captions were read. 1 could not be used, the first is {skipped[0]}. "
        "Columns that can make clients differ: group (2 values)."
    )
    assert "broken.png" in own.status.sentence
    assert own.concept.value == "group"
    assert own.preview.value.count("<img") == 16


def test_captions_that_are_cut_and_rows_that_repeat_a_picture_are_counted(finished, tmp_path):
    from PIL import Image

    long = "a golden retriever puppy running on a sandy beach at sunset"
    for name, colour in (("a", "red"), ("b", "red"), ("c", "blue")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(long if name == "b" else "a cat", encoding="utf-8")
    own = finished.own
    fill(own, tmp_path, concept="")
    own.caption_file.value = ""
    own.read_button.click()
    said = own.status.sentence
    assert said.startswith("3 pictures with captions were read. Rows with the very pixels of")
    assert "row: 1 (copies" in said and "Captions that are cut: 1, because the base" in said
    assert "reads 16 tokens" in said and "first 14 words" in said


def test_rubbish_is_answered_with_a_sentence_that_says_what_was_looked_for(
    finished, folder, tmp_path
):
    own = finished.own
    fill(own, tmp_path / "nowhere")
    own.read_button.click()
    assert (
        "There is no folder or zip at" in own.status.sentence
        and "Problem" in own.status.widget.value
    )
    (tmp_path / "notes.txt").write_text("no pictures here", encoding="utf-8")
    fill(own, tmp_path)
    own.read_button.click()
    assert "list.csv" in own.status.sentence
    fill(own, folder, concept="colour of the sky")
    own.panel.start_button.click()
    assert "colour of the sky" in own.panel.status.sentence and "group" in own.panel.status.sentence
    fill(own, "")
    own.panel.start_button.click()
    assert own.panel.status.sentence.startswith("Fill in the field Pictures")


def test_a_run_on_own_pictures_compares_base_local_only_and_federated(finished, folder):
    own = finished.own
    fill(own, folder)
    finished.tabs.selected_index = 1
    own.panel.start_button.click()
    assert own.panel.job.state == "done", own.panel.status.sentence
    run = own.panel.latest()
    assert list(run.rivals["local only"]) == [0, 1, 2]
    assert run.rivals["local only"][0] == pytest.approx(run.losses[0])
    rows = ["base model", "federated", "your pictures", "client 0 alone", "client 1 alone"]
    assert list(run.pictures) == rows
    assert "Local only ends at" in finished.loss_chart.sentence
    for axis in ("megabytes", "wireless seconds", "rounds"):
        finished.axis.value = axis
        assert "Local only ends at" in finished.loss_chart.sentence
    finished.tabs.selected_index = 0
    assert "Local only" not in finished.loss_chart.sentence


def test_the_estimate_grows_with_the_work_and_speaks_plainly():
    small, large = Scenario(rounds=3), Scenario(num_clients=16, local_steps=100)
    assert estimate_seconds(small) < 90 < estimate_seconds(large)
    assert estimate_seconds(small, 1.0) > 240
    assert duration(52) == "about 50 seconds" and duration(250) == "about 4 minutes"


def test_nothing_of_a_run_is_written_to_the_page_folder(finished):
    assert not list(Path.cwd().glob("*.safetensors"))
