"""The U-shaped split, one hop at a time: what crosses the wire as pictures and bytes, and what never crosses.

Lab 06. The iteration itself stands in `fedgen_lab.split.hops`; here it only waits for a button after every hop.
"""

import html

import ipywidgets as widgets
import pandas as pd
import torch
from IPython.display import HTML, display

from fedgen_lab.dashboards.charts import PALETTE, strip_html, table_html
from fedgen_lab.dashboards.controls import StatusLine, button, choice, grid, row, style
from fedgen_lab.dashboards.job import runs_inline
from fedgen_lab.split.hops import iteration
from fedgen_lab.split.local import new_adam
from fedgen_lab.split.nets import SIZES, new_discriminator, new_generator
from fedgen_lab.split.scenario import CUTS

HOPS = 16
NEVER = (
    "Never sent: pictures, labels, noise z, fakes, losses. They are on the device, in no message."
)
FREE_BLOCKS = (
    "Block G1",
    "Block G3",
    "Block D1",
    "Block D3",
)  # the order of a cut's bits; G: generator
SEEN = 3  # pictures of the batch whose channels are drawn
CHANNELS = 10  # of each


class SplitStep:
    """What `split_step` shows. `hops`: those of this iteration so far; `iterations`: how many are complete.

    `next_hop`, `whole_iteration`, `ten_iterations` and `start_over` are what the buttons do; `cut` is the present cut,
    such as "0110".
    """

    def __init__(self, cut, pictures, labels, size, seed):
        self.pictures, self.labels, self.size, self.seed = pictures, labels, size, seed
        self.where = [
            choice(name, [("on the server", 0), ("on the device", 1)], int(bit))
            for name, bit in zip(FREE_BLOCKS, cut, strict=True)
        ]
        self.next_button = button("Next hop", self.next_hop, main=True)
        self.whole_button = button("Whole iteration", self.whole_iteration)
        self.ten_button = button("Ten iterations", self.ten_iterations)
        self.over_button = button("Start over", self.start_over)
        self.ledger_button = button("Show ledger as table", self._toggle_ledger)
        self.status = StatusLine()
        self.map, self.strip, self.sums, self.ledger = (
            widgets.HTML(layout={"width": "100%"}) for _ in range(4)
        )
        self.ledger.layout.display = "none"
        self.box = widgets.VBox(
            [
                style(),
                grid(self.where),
                row([self.next_button, self.whole_button, self.ten_button, self.over_button]),
                self.status.widget,
                self.map,
                self.strip,
                self.sums,
                self.ledger_button,
                self.ledger,
            ],
            layout={"width": "100%"},
        )
        for menu in self.where:
            menu.observe(lambda change: self.start_over(), names="value")
        self.start_over()

    @property
    def cut(self):
        return "".join(str(menu.value) for menu in self.where)

    def start_over(self):
        """New nets with the first weights, nothing sent yet."""
        self.generator = new_generator(self.size, self.seed)
        self.discriminator = new_discriminator(self.size, self.seed + 1)
        self._adams = new_adam(self.generator, 1e-3), new_adam(self.discriminator, 1e-3)
        self.iterations, self.hops, self._rest = 0, [], None
        self._draw()

    def next_hop(self):
        """Go on until the next tensor crosses the wire; after the last, the next iteration begins."""
        self._advance()
        self._draw()

    def whole_iteration(self):
        """Go on to the last hop of this iteration."""
        self._advance()
        while len(self.hops) < HOPS:
            self._advance()
        self._draw()

    def ten_iterations(self):
        """Ten whole iterations, to see the nets learn."""
        for _ in range(10):
            self._advance()
            while len(self.hops) < HOPS:
                self._advance()
        self._draw()

    def _advance(self):
        if self._rest is None or len(self.hops) == HOPS:
            z = torch.randn(
                len(self.labels),
                self.size.z_dim,
                generator=torch.Generator().manual_seed(self.seed + self.iterations),
            )
            nets = (self.generator, self.discriminator, *self._adams)
            self.hops, self._rest = [], iteration(*nets, self.pictures, self.labels, z, self.cut)
        self.hops.append(next(self._rest))
        if len(self.hops) == HOPS:
            next(self._rest, None)  # the generator's step comes after the last hop
            self.iterations += 1

    def frame(self):
        """The ledger of this iteration: one row a hop, with its direction, what it holds, its shape and bytes."""
        rows = [
            {
                "hop": number,
                "direction": "up" if hop.up else "down",
                "net": hop.net,
                "what": hop.kind,
                "at": hop.at,
                "shape": " x ".join(map(str, hop.tensor.shape)),
                "bytes": hop.bytes,
            }
            for number, hop in enumerate(self.hops, 1)
        ]
        return pd.DataFrame(
            rows, columns=["hop", "direction", "net", "what", "at", "shape", "bytes"]
        )

    def sentence(self):
        """The present hop in words."""
        if not self.hops:
            return "Nothing has been sent yet. Next hop sends the first tensor."
        hop, number = self.hops[-1], len(self.hops)
        words = (
            f"Iteration {self.iterations + (number < HOPS)}, hop {number} of {HOPS}, {'up' if hop.up else 'down'}: "
            f"{hop.bytes:,} bytes. {hop.why}"
        )
        return words

    def _draw(self):
        hop = self.hops[-1] if self.hops else None
        self.status.say(self.sentence())
        self.map.value = map_html(self.cut, hop)
        self.strip.value = "" if hop is None else tensor_html(hop)
        up, down = (sum(one.bytes for one in self.hops if one.up is way) for way in (True, False))
        so_far = f"This iteration so far: {up:,} bytes up, {down:,} bytes down."
        self.sums.value = f'<p class="fedgen-note">{so_far}<br>{NEVER}</p>'
        self.ledger.value = f'<div style="white-space: nowrap">{table_html(self.frame())}</div>'

    def _toggle_ledger(self):
        hidden = self.ledger.layout.display == "none"
        self.ledger.layout.display = "" if hidden else "none"
        self.ledger_button.description = f"{'Hide' if hidden else 'Show'} ledger as table"

    def _ipython_display_(self):
        """Shown already by `split_step`."""


def split_step(cut="0110", pictures=None, labels=None, size="lab14", seed=0):
    """Show one iteration hop by hop, with buttons for the next hop and the whole iteration, and the cut to choose.

    pictures: a device's batch (B, C, H, W) in [-1, 1] that fits `size`, and its labels (B,); handwritten digits
    unless given. Returns the `SplitStep`. Raises ValueError for an unknown cut or size, or pictures of another shape.
    """
    if cut not in CUTS:
        raise ValueError(f'cut must be four bits such as "0110"; got {cut!r}.')
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}; got {size!r}.")
    size = SIZES[size]
    if pictures is None:
        pictures, labels = _digits(size, seed)
    if tuple(pictures.shape[1:]) != size.picture or labels is None or len(labels) != len(pictures):
        raise ValueError(
            f"size {size.name!r} needs pictures of the shape (B, {', '.join(map(str, size.picture))}) and a label for "
            f"each; got {tuple(pictures.shape)} and {0 if labels is None else len(labels)} labels."
        )
    made = SplitStep(cut, pictures, labels, size, seed)
    if (
        runs_inline()
    ):  # an HTML copy shows no widgets: two moments of the iteration, then all of its ledger
        made.next_hop()
        moments = _still(made)
        made.whole_iteration()
        display(HTML(f"{moments}{_still(made)}{made.sums.value}{made.ledger.value}"))
    else:
        display(made.box)
    return made


def _digits(size, seed):
    from fedgen_lab.pictures.domains import load_domain

    if size.channels != 1:
        raise ValueError(
            f"size {size.name!r} is in colour and digits are grey: hand over pictures and labels."
        )
    domain = load_domain("digits", number=16, side=size.side, seed=seed)
    return domain.as_tensor(), domain.labels


def _still(made):
    return f"<p>{html.escape(made.sentence())}</p>{made.map.value}{made.strip.value}"


# ---- the tensor as pictures


def tensor_html(hop):
    """Three pictures of the batch and the first channels of what crosses, as small grey images. Returns HTML.

    Grey is zero in a gradient; in an activation black is the smallest number and white the largest of the tensor.
    """
    tensor = hop.tensor[:SEEN, :CHANNELS].float()
    low, high = float(tensor.min()), float(tensor.max())
    if hop.kind == "gradient":
        high = max(-low, high)
        low = -high
    scaled = (tensor - low) / max(high - low, 1e-12) * 2 - 1
    scaled = scaled[:, :, None].expand(-1, -1, 3, -1, -1)  # grey is three equal colours
    channels = [f"channel {channel}" for channel in range(tensor.shape[1])]
    sent = [(f"picture {number}", picture) for number, picture in enumerate(scaled)]
    words = f"On the wire: {len(hop.tensor)} pictures x {hop.tensor.shape[1]} channels; the first of them. "
    words += f"Numbers from {float(hop.tensor.min()):.3g} to {float(hop.tensor.max()):.3g}."
    if hop.kind == "gradient":
        words += " Mid-grey is zero."
    parts = [f"<div>{words}</div>", strip_html(sent, channels, max(2, 56 // tensor.shape[-1]))]
    if hop.shown is not None:
        shown = hop.shown[:SEEN].expand(-1, 3, -1, -1)
        names = [f"picture {number}" for number in range(len(shown))]
        stays = strip_html([("stays", shown)], names, max(2, 56 // shown.shape[-1]))
        parts = ["<div>On the device, not sent:</div>", stays, *parts]
    # A grid whose column may be narrower than its content: long strips scroll, words wrap.
    look = "display: grid; grid-template-columns: minmax(0, 1fr); gap: 4px"
    return f'<div class="fedgen-note" style="{look}">{"".join(parts)}</div>'


# ---- the map of the ten blocks

_COLUMN, _TOP, _BOTTOM, _BOX = 70, 34, 124, (56, 40)  # pixels
_LEFT, _WIDTH = 58, 410
_SHORES = {"server": _TOP, "device": _BOTTOM}


def map_html(cut, hop=None):
    """The five blocks of each net on two shores, the server above and the device below; the present hop is an arrow.

    The device's blocks have dashed borders. Returns HTML: two SVGs whose labels say the same in words.
    """
    bits = [int(bit) for bit in cut]
    maps = "".join(
        _net_map(net, (1, first, 0, third, 1), hop if hop is not None and hop.net == net else None)
        for net, first, third in (("generator", *bits[:2]), ("discriminator", *bits[2:]))
    )
    return f'<div style="display: flex; flex-wrap: wrap; gap: 0 12px" data-cut="{cut}">{maps}</div>'


def _net_map(net, held, hop):
    """One net as an SVG. held: five bits, 1 where the device holds the block."""
    letter, shores = net[0].upper(), [_BOTTOM if here else _TOP for here in held]
    parts = [
        f'<text x="0" y="{y + 24}" font-weight="bold">{name}</text>' for name, y in _SHORES.items()
    ]
    parts.append(f'<text x="{_LEFT}" y="{_BOTTOM + 60}">{net}</text>')
    for place, (here, y) in enumerate(zip(held, shores, strict=True)):
        x, name = (
            _LEFT + place * _COLUMN,
            f"{letter}{place}" + {0: " head", 4: " tail"}.get(place, ""),
        )
        role, dash = ("client", ' stroke-dasharray="5 3"') if here else ("server", "")
        parts.append(
            f'<rect x="{x}" y="{y}" width="{_BOX[0]}" height="{_BOX[1]}" rx="4" fill="none" '
            f'stroke="{PALETTE[role]}" stroke-width="2"{dash}/>'
            f'<text x="{x + _BOX[0] / 2}" y="{y + 24}" text-anchor="middle">{name}</text>'
        )
        if place < 4:
            ends = (
                f'x1="{x + _BOX[0]}" y1="{y + 20}" x2="{x + _COLUMN}" y2="{shores[place + 1] + 20}"'
            )
            parts.append(f'<line {ends} stroke="#808080"/>')
    sides = [[f"{letter}{place}" for place in range(5) if held[place] == side] for side in (1, 0)]
    words = [f"{net}: on the device {', '.join(sides[0])}", f"on the server {', '.join(sides[1])}"]
    if hop is not None:
        # The head cut lies before the first block on the server, the tail cut behind the last.
        boundary = held.index(0) if hop.at == "head" else 5 - held[::-1].index(0)
        way = "up" if hop.up else "down"
        parts.append(
            _arrow(_LEFT + boundary * _COLUMN - 7, hop.up, f"{hop.kind}, {hop.bytes:,} bytes {way}")
        )
        words.append(f"now its {hop.kind} goes {way} at the {hop.at}")
    label = html.escape("; ".join(words) + ".", quote=True)
    return (
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {_WIDTH} 190" fill="currentColor" style="display: block; '
        f"flex: 1 1 340px; min-width: 0; max-width: {_WIDTH}px; font: 13px sans-serif; "
        'color: var(--jp-ui-font-color1, #222); background: var(--jp-layout-color0, #fff)">'
        f"{''.join(parts)}</svg>"
    )


def _arrow(x, up, words):
    y, tip = (_BOTTOM - 2, _TOP + _BOX[1] + 6) if up else (_TOP + _BOX[1] + 2, _BOTTOM - 6)
    back = 9 if up else -9
    return (
        f'<line x1="{x}" y1="{y}" x2="{x}" y2="{tip}" stroke="currentColor" stroke-width="4"/>'
        f'<path d="M{x - 8} {tip + back} L{x} {tip - back / 3} L{x + 8} {tip + back} Z"/>'
        f'<text x="{min(max(x, 140), 270)}" y="18" text-anchor="middle" font-weight="bold">{words}</text>'
    )
