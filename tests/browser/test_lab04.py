"""Lab 04 in a real browser: rules, ranks, a run that is stopped, mixtures; by keyboard, on a wide and a narrow page."""

from lab_in_browser import (
    good_to_look_at,
    keyboard_reaches_everything,
    knob,
    turn_to_both_ends,
    wait_for,
)

NAME = "04_aggregation_rules"
KNOBS = {
    "Clients": ("2", "16"),
    "Skew": ("0", "1"),
    "Local steps": ("1", "100"),
    "Bandwidth (MHz)": ("0.1", "100"),
    "Seed": ("0", "99"),
}


def test_rules_are_chosen_run_compared_and_stopped(lab, pictures):
    from playwright.sync_api import expect

    output = lab.run_cell("dashboard = rules_dashboard(")
    wait_for(output, "^Ready")
    expect(output.locator(".js-plotly-plot")).to_have_count(3)
    keyboard_reaches_everything(lab, output)
    turn_to_both_ends(lab, output, KNOBS)
    clients, _ = knob(output, "Clients")
    clients.fill("2")  # each one's pictures are drawn at the end
    clients.press("Tab")

    # Ranks may differ under some rules only.
    ranks = output.get_by_label("Ranks", exact=True)
    expect(ranks).to_be_disabled()
    output.get_by_label("Rule", exact=True).select_option("flora")
    expect(ranks).to_be_enabled()
    ranks.select_option("2, 4, 8 in turn")
    output.get_by_role("button", name="Start", exact=True).click()
    wait_for(output, r"^Done: 3 of 3 rounds")
    first = output.locator(".js-plotly-plot").first
    expect(first.locator(".legendtext")).to_have_text(["live, flora"])

    # A second rule beside the first, stopped half-way.
    output.get_by_label("Rule", exact=True).select_option("ffa")
    expect(ranks).to_be_disabled()
    steps, _ = knob(output, "Local steps")
    steps.fill("100")
    steps.press("Tab")
    output.get_by_role("button", name="Start", exact=True).click()
    wait_for(output, r"step \d+ of 100")
    output.get_by_role("button", name="Stop", exact=True).click()
    wait_for(output, "^Stopped")
    for axis in ("megabytes", "wireless seconds"):
        output.get_by_label("Loss against", exact=True).select_option(axis)
    expect(first.locator(".legendtext").first).to_contain_text("live, flora")
    expect(first.locator(".legendtext").last).to_contain_text("live, ffa")
    good_to_look_at(lab, output, pictures / "lab04_rules")


def test_a_mixture_of_personal_adapters_follows_its_knobs(lab, pictures):
    for text in (
        "outcome = run_federated(scenario)",
        "pipeline, dealt = prepare(",
        "add_adapters(shared.unet",
    ):
        lab.run_cell(text)
    output = lab.run_cell("mixture_knobs(")
    wait_for(output, "^Drawn with 1 x airplane")
    keyboard_reaches_everything(lab, output)
    turn_to_both_ends(lab, output, {"Weight of anchor": ("-1", "2")})
    _, slider = knob(output, "Weight of airplane")
    slider.press("Home")
    wait_for(output, "^Drawn with -1 x airplane: ")
    good_to_look_at(lab, output, pictures / "lab04_mixture")
