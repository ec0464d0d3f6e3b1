"""Lab 03 in a real browser: start a run, turn knobs by keyboard, stop; nothing breaks, nothing leaves the machine."""

from lab_in_browser import (
    good_to_look_at,
    keyboard_reaches_everything,
    knob,
    status,
    turn_to_both_ends,
    wait_for,
)

NAME = "03_federated_lora"
KNOBS = {
    "Clients": ("2", "16"),
    "Bandwidth (MHz)": ("0.1", "100"),
    "Skew": ("0", "1"),
    "Rank": ("1", "32"),
    "Local steps": ("1", "100"),
    "Seed": ("0", "99"),
}


def test_a_learner_starts_turns_knobs_and_stops(lab, pictures):
    from playwright.sync_api import expect

    output = lab.run_cell("lora_dashboard()")
    output.locator(".js-plotly-plot .main-svg").first.wait_for()
    wait_for(output, "^Ready")
    keyboard_reaches_everything(lab, output)
    turn_to_both_ends(lab, output, KNOBS)
    number, slider = knob(output, "Clients")
    slider.press("ArrowRight")
    lab.page.wait_for_function("box => box.value === '5'", arg=number.element_handle())

    # A run to its end: the status line, the pictures, the charts. Two clients have fewer pictures to draw.
    number.fill("2")
    number.press("Tab")
    output.get_by_role("button", name="Start", exact=True).click()
    wait_for(output, r"^Done: 2 of 2 rounds")
    output.locator(".fedgen-strip img").nth(2 * 4 - 1).wait_for()
    charts = output.locator(".js-plotly-plot")
    expect(charts).to_have_count(2)
    charts.first.locator(".scatterlayer .trace").first.wait_for(state="attached")
    expect(charts.nth(1).locator(".barlayer .trace")).to_have_count(3)
    caption = output.locator(".fedgen-note").filter(has_text="Live, on this machine")
    expect(caption).to_contain_text("at 5 MHz")

    # The adapter as a file, by keyboard alone.
    output.get_by_role("button", name="Download the adapter").press("Enter")
    with lab.page.expect_download() as download:
        output.get_by_role("link", name="for diffusers").press("Enter")
    assert download.value.suggested_filename == "fedit-diffusers.safetensors"

    # The bandwidth knob re-times the finished run; nothing trains.
    _, slider = knob(output, "Bandwidth (MHz)")
    slider.press("Home")
    expect(caption).to_contain_text("at 0.1 MHz")
    assert status(output).inner_text().startswith("Done")

    # A longer run, stopped.
    steps, _ = knob(output, "Local steps")
    steps.fill("100")
    steps.press("Tab")
    output.get_by_role("button", name="Start", exact=True).click()
    wait_for(output, r"step \d+ of 100")
    output.get_by_role("button", name="Stop", exact=True).click()
    wait_for(output, "^Stopped")

    # The same numbers as a table.
    output.get_by_role("button", name="Show loss as table").click()
    expect(output.get_by_role("button", name="Hide loss as table")).to_be_visible()
    assert output.locator(".fedgen-table table tbody tr").filter(visible=True).count() >= 2

    good_to_look_at(lab, output, pictures / "lab03")
    assert lab.page.get_by_text("Share chart").count() == 0
    assert (
        lab.page.locator("[data-title*=Share], [data-title*=Cloud], [data-title*=cloud]").count()
        == 0
    )
    lab.theme("JupyterLab Dark")
    lab.page.screenshot(path=pictures / "lab03_dark.png")
    for chart in output.locator(".js-plotly-plot").all():
        assert chart.bounding_box()["height"] > 50
    lab.theme("JupyterLab Light")
    assert not lab.errors and not lab.foreign, (lab.errors, lab.foreign)


def test_after_a_kernel_restart_in_mid_run_the_cell_is_simply_run_again(lab):
    output = lab.run_cell("lora_dashboard()")
    wait_for(output, "^Ready")
    steps, _ = knob(output, "Local steps")
    steps.fill("100")
    steps.press("Tab")
    output.get_by_role("button", name="Start", exact=True).click()
    wait_for(output, r"step \d+ of 100")
    lab.page.evaluate(
        "() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()"
    )
    output = lab.run_cell("lora_dashboard()")
    wait_for(output, "^Ready")
    output.get_by_role("button", name="Start", exact=True).click()
    wait_for(output, r"^(Round 1 of 2 is complete|Round 2 of 2|Drawing|Done)")
    assert lab.foreign == []
