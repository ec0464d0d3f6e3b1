"""Lab 08 in a real browser: the panel of attacks and defences by keyboard; combinations that go and one that can't."""

from lab_in_browser import (
    good_to_look_at,
    keyboard_reaches_everything,
    knob,
    status,
    turn_to_both_ends,
    wait_for,
)

NAME = "08_what_leaks"
KNOBS = {"Clip": ("0", "20"), "Noise": ("0", "2")}


def measure(output):
    output.get_by_role("button", name="Measure this combination", exact=True).press("Space")


def test_every_defence_noise_and_secure_aggregation_on_one_rounds_uploads(lab, pictures):
    from playwright.sync_api import expect

    lab.run_cell("uploads = run_uploads(")
    output = lab.run_cell("panel = leaks_panel(scenario, uploads)")
    wait_for(output, "^Ready")
    keyboard_reaches_everything(lab, output)
    turn_to_both_ends(lab, output, KNOBS)
    measure(output)
    wait_for(
        output,
        r"^Defence mean: held-out loss \d.*, 0\.\d+ before the round; \d+% of the pictures are as asked",
    )
    expect(output.locator(".fedgen-strip img")).to_have_count(
        2 * 2
    )  # two prompts, without and with the trigger

    defence, secure = (
        output.get_by_label(name, exact=True) for name in ("Defence", "Secure aggregation")
    )
    defence.select_option("krum")
    secure.select_option("on")
    measure(output)
    wait_for(output, "turn secure aggregation off")
    defence.select_option("mean")
    number, _ = knob(output, "Noise")
    number.fill("0.1")
    number.press("Tab")
    measure(output)
    wait_for(output, "Noise belongs to a mean of clipped uploads")
    knob(output, "Clip")[1].press("End")
    measure(output)
    wait_for(output, "^Defence mean, clip 20, noise 0.1, secure aggregation: held-out loss")
    expect(output.locator("table tbody tr")).to_have_count(2 + 2)  # measured, and rows of pictures

    measure(output)
    output.get_by_role("button", name="Stop", exact=True).click()
    wait_for(output, "^Stopped")
    assert "Traceback" not in output.inner_text() and status(output).inner_text()
    good_to_look_at(lab, output, pictures / "lab08_panel")
