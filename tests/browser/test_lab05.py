"""Lab 05 in a real browser: the radio's knobs by keyboard, on a wide and on a narrow page. Nothing trains there."""

from lab_in_browser import good_to_look_at, keyboard_reaches_everything, turn_to_both_ends

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
    assert "it is link-bound" in output.inner_text(), "a whole UNet is bound by the link"
    output.get_by_label("Seconds a round against", exact=True).select_option(index=1)
    good_to_look_at(lab, output, pictures / "lab05_radio")
