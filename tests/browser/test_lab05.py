"""Lab 05 in a real browser: the radio, live runs on its clock, a hand-off; by keyboard, on wide and narrow pages."""

from lab_in_browser import (
    good_to_look_at,
    keyboard_reaches_everything,
    knob,
    turn_to_both_ends,
    wait_for,
)

NAME = "05_wireless"
KNOBS = {
    "Clients": ("2", "50"),
    "Bandwidth (MHz)": ("0.1", "100"),
    "Cell radius (m)": ("20", "2000"),
    "Rank": ("1", "128"),
    "Deadline (s)": ("1", "100000"),
    "Round": ("1", "5"),
    "Seed": ("0", "99"),
}


def test_the_radio_by_keyboard_with_every_payload_and_share(lab, pictures):
    from playwright.sync_api import expect

    output = lab.run_cell("dashboard = radio_dashboard()")
    expect(output.locator(".js-plotly-plot")).to_have_count(3)
    keyboard_reaches_everything(lab, output)
    turn_to_both_ends(lab, output, KNOBS)
    for menu in ("What travels", "Uploads as", "Shares of the band", "Rate"):
        output.get_by_label(menu, exact=True).select_option(index=1)
    expect(output).to_contain_text("it is link-bound")  # as a whole UNet is
    output.get_by_label("Seconds a round against", exact=True).select_option(index=1)
    good_to_look_at(lab, output, pictures / "lab05_radio")


def test_slow_clients_are_waited_for_left_out_or_merged_late(lab, pictures):
    from playwright.sync_api import expect

    for text in (
        "cell = Network(",
        "outcome = run_federated(",
        "phone = replace(",
        "deadline = round(",
    ):
        lab.run_cell(text)
    output = lab.run_cell("air_dashboard(")
    wait_for(output, "^Ready")
    keyboard_reaches_everything(lab, output)
    knobs = {
        "Clients": ("2", "8"),
        "Bandwidth (MHz)": ("0.1", "100"),
        "Deadline (s)": ("0.01", "100"),
    }
    turn_to_both_ends(
        lab,
        output,
        {**knobs, "Share asked": ("0.1", "1"), "Buffer": ("1", "8"), "Seed": ("0", "99")},
    )

    for way, words in (
        ("deadline", "^Done: deadline, 2 of 2 rounds"),
        ("FedBuff", "^Done: FedBuff, 4 of 4 rounds"),
    ):
        output.get_by_label("Slow clients", exact=True).select_option(way)
        output.get_by_role("button", name="Start", exact=True).click()
        wait_for(output, words)
    legend = output.locator(".js-plotly-plot .legendtext")
    expect(legend).to_have_text(["live, deadline", "live, FedBuff"])
    output.get_by_label("Loss against", exact=True).select_option("megabytes")
    good_to_look_at(lab, output, pictures / "lab05_air")


def test_a_half_drawn_picture_is_handed_over(lab, pictures):
    for text in ("lines = traffic_lines(", "hand_off_table("):
        lab.run_cell(text)
    output = lab.run_cell("hand_off_knob(")
    wait_for(output, r"in \d groups")
    keyboard_reaches_everything(lab, output)
    turn_to_both_ends(lab, output, {"Hand-off after step": ("0", "20"), "Similarity": ("0", "1")})
    knob(output, "Hand-off after step")[1].press("Home")
    wait_for(output, "Nothing is handed over")
    good_to_look_at(lab, output, pictures / "lab05_hand_off")
