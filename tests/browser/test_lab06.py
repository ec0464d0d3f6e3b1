"""Lab 06 in a real browser: hop by hop through the U, then the attack; by keyboard, on a wide and on a narrow page."""

import re

from lab_in_browser import (
    good_to_look_at,
    keyboard_reaches_everything,
    knob,
    status,
    turn_to_both_ends,
    wait_for,
)

NAME = "06_u_shaped_split"
BLOCKS = ("Block G1", "Block G3", "Block D1", "Block D3")
KNOBS = {
    "Depth": ("1", "4"),
    "Noise": ("0", "8"),
    "Decorrelation": ("0", "10"),
    "Iterations": ("0", "100"),
}


def test_the_u_hop_by_hop_with_every_block_on_either_side(lab, pictures):
    from playwright.sync_api import expect

    output = lab.run_cell('split_step(cut="0110")')
    wait_for(output, "^Nothing has been sent yet")
    keyboard_reaches_everything(lab, output)

    # By keyboard: the first hop, then every block to the device and to the server.
    output.get_by_role("button", name="Next hop", exact=True).press("Enter")
    wait_for(output, r"^Iteration 1, hop 1 of 16, up: [\d,]+ bytes")
    for key, cut, at_server in (
        ("End", "1111", ["G2", "D2"]),
        ("Home", "0000", ["G1, G2, G3", "D1, D2, D3"]),
    ):
        for block in BLOCKS:
            output.get_by_label(block, exact=True).press(key)
        expect(output.locator(f"[data-cut='{cut}']")).to_be_visible()
        maps = [one.get_attribute("aria-label") for one in output.locator("[data-cut] svg").all()]
        assert [words.split("on the server ")[1].rstrip(".") for words in maps] == at_server
        wait_for(output, "^Nothing has been sent yet")  # another cut starts over
        for button, hop in (("Whole iteration", 16), ("Next hop", 1)):
            output.get_by_role("button", name=button, exact=True).press("Space")
            wait_for(output, rf"^Iteration \d, hop {hop} of 16")
        output.locator(".fedgen-strip img").filter(visible=True).nth(30 - 1).wait_for()

    # What never leaves the device is shown as such; the ledger has a row a hop.
    for hop in range(2, 8):
        output.get_by_role("button", name="Next hop", exact=True).click()
        wait_for(output, rf"hop {hop} of 16")
    expect(output.get_by_text("On the device, not sent:")).to_be_visible()
    output.get_by_role("button", name="Show ledger as table").click()
    expect(output.locator(".fedgen-table tbody tr").filter(visible=True)).to_have_count(7)

    good_to_look_at(lab, output, pictures / "lab06_hops")


def test_the_attack_is_turned_to_both_ends_started_and_stopped(lab, pictures):
    from playwright.sync_api import expect

    output = lab.run_cell("attack_panel()")
    wait_for(output, "^Ready")
    keyboard_reaches_everything(lab, output)
    turn_to_both_ends(lab, output, KNOBS)

    output.get_by_role("button", name="Start the attack").press("Enter")
    wait_for(output, r"^1 block before the cut, no protection: the server reads \d+% of the labels")
    expect(output.locator(".fedgen-strip img")).to_have_count(20)  # real ones above rebuilt ones

    # The strongest protection, stopped: no pictures and no row.
    for name in KNOBS:
        knob(output, name)[1].press("End")
    output.get_by_label("Bits", exact=True).press("End")
    output.get_by_role("button", name="Start the attack").press("Enter")
    wait_for(output, r"iteration \d+ of 100")
    expect(output.locator(".fedgen-strip img")).to_have_count(0)
    output.get_by_role("button", name="Stop", exact=True).press("Enter")
    assert "no row was added" in wait_for(output, "^Stopped")
    output.get_by_role("button", name="Show attacks as table").click()
    expect(output.locator(".fedgen-table tbody tr").filter(visible=True)).to_have_count(1)

    # The server that guesses from fresh heads: no training at all, the deepest cut.
    knob(output, "Iterations")[1].press("Home")
    output.get_by_role("button", name="Start the attack").press("Enter")
    sentence = wait_for(
        output, r"^4 blocks before the cut, noise 8 and 8 bits and decorrelation 10"
    )
    assert re.search("the penalty has changed nothing", sentence) and "NaN" not in sentence
    expect(output.locator(".fedgen-table tbody tr").filter(visible=True)).to_have_count(2)

    assert status(output).get_attribute("aria-live") == "polite"
    good_to_look_at(lab, output, pictures / "lab06_attack")
