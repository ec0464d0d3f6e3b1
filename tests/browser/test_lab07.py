"""Lab 07 in a real browser: clusters, cuts, a live run and its rivals; by keyboard, on a wide and on a narrow page."""

from lab_in_browser import (
    good_to_look_at,
    keyboard_reaches_everything,
    knob,
    turn_to_both_ends,
    wait_for,
)

NAME = "07_huscf_gan"
KNOBS = {
    "Clients": ("2", "16"),
    "Bandwidth (MHz)": ("1", "1000"),
    "Skew": ("0", "1"),
    "KLD alpha": ("0.1", "1000"),
    "Warm-up": ("0", "3"),
    "Seed": ("0", "99"),
}


def note(output, words):
    return output.locator(".fedgen-note").filter(has_text=words).first


def test_clusters_and_weights_of_a_finished_run(lab, pictures):
    from playwright.sync_api import expect

    for text in ("dealt, size = deal(scenario)", "outcome = run_gan(scenario)"):
        lab.run_cell(text)
    output = lab.run_cell("view = cluster_view(outcome, dealt)")
    expect(note(output, "Round 4: 2 clusters")).to_be_visible()
    keyboard_reaches_everything(lab, output)
    turn_to_both_ends(lab, output, {"Round of the clusters": ("1", "4"), "Alpha": ("0.1", "10000")})

    knob(output, "Alpha")[1].press("End")
    expect(note(output, "At alpha = 10000 the weight of client")).to_be_visible()
    knob(output, "Round of the clusters")[1].press("Home")
    expect(note(output, "Round 1: warm-up")).to_be_visible()
    output.get_by_role("button", name="Show weights as table").press("Space")
    expect(output.locator(".fedgen-table tbody tr").filter(visible=True)).to_have_count(8)
    expect(output.locator(".js-plotly-plot")).to_have_count(3)
    good_to_look_at(lab, output, pictures / "lab07_clusters")


def test_cuts_moved_by_keyboard_and_a_race_that_is_stopped(lab, pictures):
    from playwright.sync_api import expect

    output = lab.run_cell("editor = cut_editor()")
    wait_for(output, "^Ready")
    expect(note(output, "One iteration of 7 clients takes 7.074 s, 3.1 % above")).to_be_visible()
    keyboard_reaches_everything(lab, output)
    turn_to_both_ends(lab, output, {"Clients": ("1", "100"), "Link rates, times": ("0.01", "100")})

    output.locator(".widget-toggle-button").first.press("Space")
    expect(output.locator(".widget-toggle-button").first).to_have_text("G1: device")
    output.get_by_role("button", name="Exact optimum").press("Enter")
    expect(note(output, "which is the optimum")).to_be_visible()
    output.get_by_role("button", name="All on the devices").press("Enter")
    knob(output, "Clients")[1].press("End")
    knob(output, "Link rates, times")[1].press("Home")
    expect(note(output, "One iteration of 100 clients")).to_be_visible()

    output.get_by_role("button", name="Race the genetic algorithm").press("Enter")
    wait_for(output, "generation [1-9]")
    output.get_by_role("button", name="Stop", exact=True).press("Enter")
    assert "above the optimum" in wait_for(output, "^Stopped")
    expect(output.locator(".js-plotly-plot")).to_have_count(2)
    good_to_look_at(lab, output, pictures / "lab07_cuts")


def test_a_learner_runs_a_method_turns_the_band_and_stops_a_rival(lab, pictures):
    from playwright.sync_api import expect

    output = lab.run_cell("dashboard = huscf_dashboard()")
    wait_for(output, "^Ready")
    keyboard_reaches_everything(lab, output)
    turn_to_both_ends(lab, output, KNOBS)

    output.get_by_role("button", name="Start", exact=True).press("Enter")
    wait_for(output, r"^Done: 3 of 3 rounds in \d+ s. Image score: digits")
    expect(output.locator(".fedgen-strip img")).to_have_count(4 * 10)
    caption = note(output, "Live, on this machine")
    expect(caption).to_contain_text("at 20 MHz")
    for key, end in (
        ("Home", "at 1 MHz"),
        ("End", "at 1000 MHz"),
    ):  # the finished run is timed anew; nothing trains
        knob(output, "Bandwidth (MHz)")[1].press(key)
        expect(caption).to_contain_text(end)
    knob(output, "KLD alpha")[1].press("End")
    expect(note(output, "At alpha = 1000")).to_be_visible()

    # Four domains and as many clients as there can be, all with one label: the longest legends, the fullest map.
    output.get_by_label("Domains", exact=True).press("End")
    output.get_by_label("Method", exact=True).press("End")
    for name in ("Clients", "Skew"):
        knob(output, name)[1].press("End")
    output.get_by_role("button", name="Start", exact=True).press("Enter")
    wait_for(output, "^Round [12] of 3, iteration")
    output.get_by_role("button", name="Stop", exact=True).press("Enter")
    wait_for(output, "^Stopped")

    # Fewer clients than domains is refused in words.
    knob(output, "Clients")[1].press("Home")
    output.get_by_role("button", name="Start", exact=True).press("Enter")
    wait_for(output, "^Problem: 4 domains need at least as many clients")
    expect(caption).to_be_visible()  # it goes on telling of the run before
    good_to_look_at(lab, output, pictures / "lab07_live")


def test_the_recorded_rivals_for_every_score_and_price(lab, pictures):
    from playwright.sync_api import expect

    for text in ("import METHOD_NAMES", "recorded = recorded_gans()"):
        lab.run_cell(text)
    output = lab.run_cell("view = rivals_view(recorded)")
    expect(note(output, "Recorded, S")).to_be_visible()
    keyboard_reaches_everything(lab, output)
    for key in ("End", "Home"):
        for name in ("Scenario", "Score", "against"):
            output.get_by_label(name, exact=True).press(key)
        words = "the best recall has" if key == "End" else "the best image score has"
        expect(note(output, words)).to_be_visible()
    good_to_look_at(lab, output, pictures / "lab07_rivals")
