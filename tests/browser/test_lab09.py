"""Lab 09 in a real browser: the copying dashboard by keyboard, a short run and its Stop, pictures and originals."""

from lab_in_browser import good_to_look_at, keyboard_reaches_everything, turn_to_both_ends, wait_for

NAME = "09_memorization"
KNOBS = {
    "Repetitions": ("1", "32"),
    "Private pictures": ("4", "512"),
    "Canaries": ("0", "4"),
    "Steps": ("10", "500"),
    "Rank": ("1", "32"),
    "DP noise": ("0", "2"),
    "Seed": ("0", "99"),
}


def test_a_copier_is_trained_stopped_and_shown_beside_its_originals(lab, pictures):
    from playwright.sync_api import expect

    lab.run_cell("few = profile()")
    output = lab.run_cell("dashboard = copying_dashboard(")
    expect(output.locator(".js-plotly-plot")).to_have_count(1)
    keyboard_reaches_everything(lab, output)
    turn_to_both_ends(lab, output, KNOBS)
    for menu in ("Show", "against"):
        output.get_by_label(menu, exact=True).select_option(index=1)
    output.get_by_role("button", name="Train a copier").click()
    wait_for(output, r"^Step \d+ of")
    output.get_by_role("button", name="Stop").click()
    wait_for(output, "^Stopped: nothing was drawn yet")
    output.get_by_label("Steps", exact=True).fill("10")
    output.get_by_label("Steps", exact=True).press("Tab")
    output.get_by_role("button", name="Train a copier").click()
    wait_for(output, "^Done: copies came back of")
    expect(output.locator(".fedgen-strip img")).to_have_count(16)
    good_to_look_at(lab, output, pictures / "lab09_copying")


def test_pictures_stand_beside_their_originals_and_pages_turn(lab, pictures):
    from playwright.sync_api import expect

    lab.run_cell("few = profile()")
    lab.run_cell("DETECTORS = {")
    output = lab.run_cell("view = originals_view(")
    expect(output.locator(".fedgen-strip img")).to_have_count(16)
    keyboard_reaches_everything(lab, output)
    turn_to_both_ends(lab, output, {"Page": ("1", "38")})
    output.get_by_label("Sorted by", exact=True).select_option(index=2)
    wait_for(output, "^tiled distance: pictures 1 to 8 of 300")
    good_to_look_at(lab, output, pictures / "lab09_originals")
