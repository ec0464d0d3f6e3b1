"""Lab 10 in a real browser: peers meet, are stopped, and every model can be clicked on; the recorded table's menu."""

from lab_in_browser import good_to_look_at, keyboard_reaches_everything, turn_to_both_ends, wait_for

NAME = "10_pdfed"
KNOBS = {
    "Peers": ("1", "8"),
    "Validators": ("0", "4"),
    "Bandwidth (MHz)": ("0.01", "100"),
    "Skew": ("0", "1"),
    "Seconds": ("10", "600"),
    "Novelty weight": ("0", "1"),
    "Own weight": ("0", "1"),
    "Staleness": ("0", "1"),
    "Attackers": ("0", "7"),
    "Seed": ("0", "99"),
}


def test_peers_meet_are_stopped_and_every_model_is_told_of(lab, pictures):
    from playwright.sync_api import expect

    lab.run_cell("from fedgen_lab.exercises import")
    output = lab.run_cell("board = peers_dashboard(")
    expect(output.locator(".js-plotly-plot")).to_have_count(3)
    keyboard_reaches_everything(lab, output)
    turn_to_both_ends(lab, output, KNOBS)
    for name, value in (("Peers", "2"), ("Validators", "0"), ("Attackers", "0"), ("Seconds", "20")):
        number = output.get_by_label(name, exact=True)
        number.fill(value)
        number.press("Tab")
    output.get_by_role("button", name="Let peers meet").click()
    wait_for(output, r"^Second \d+ of 20 \(simulated\): peer \d")
    output.get_by_role("button", name="Stop").click()
    wait_for(output, r"^Stopped.*models and \d+ revealed votes")
    output.get_by_label("Attack", exact=True).select_option("withholder")
    output.get_by_label("Attackers", exact=True).fill("1")
    output.get_by_label("Attackers", exact=True).press("Tab")
    output.get_by_role("button", name="Let peers meet").click()
    wait_for(output, r"^Done: \d+ models and \d+ revealed votes in 20 simulated seconds")
    output.get_by_role("button", name="0", exact=True).click()
    expect(output).to_contain_text("Model 0 draws")
    assert "verified; parents and wallet as on the chain" in output.inner_text()
    assert "Traceback" not in output.inner_text()
    good_to_look_at(lab, output, pictures / "lab10_peers")


def test_the_recorded_table_shows_every_score(lab, pictures):
    from playwright.sync_api import expect

    output = lab.run_cell("view = table_view()")
    expect(output.locator(".js-plotly-plot")).to_have_count(1)
    menu = output.get_by_label("Score", exact=True)
    for option in menu.locator("option").all_inner_texts():
        menu.select_option(option)
        expect(output.locator(".js-plotly-plot .ytitle")).to_have_text(option)
    expect(output).to_contain_text("Recorded, 3 seeds")
    good_to_look_at(lab, output, pictures / "lab10_table")
