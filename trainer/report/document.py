"""An HTML document that loads nothing and runs nothing, readable in light and dark, on a phone, printed."""

import html
from collections.abc import Mapping

from trainer.report.charts import COLOURS

_STYLE = """
*{box-sizing:border-box}
body{margin:0 auto;max-width:76rem;padding:1rem;font:16px/1.5 system-ui,sans-serif;color:var(--fg);
background:var(--bg)}
h1{font-size:1.5rem;margin:.2rem 0;overflow-wrap:anywhere}h2{font-size:1.15rem;margin:2rem 0 .6rem}
h3{font-size:1rem;margin:1.2rem 0 .6rem}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,21rem),1fr));gap:1rem 1.5rem}
figure{margin:0;min-width:0;break-inside:avoid}figcaption{font-weight:600;font-size:.9rem}svg{display:block;width:100%}
.tiles{display:flex;flex-wrap:wrap;gap:.6rem 1.8rem;margin:.8rem 0}
.tiles div{font-size:.85rem}.tiles b{display:block;font-size:1.25rem;font-weight:600}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem}
th,td{padding:.2rem .8rem .2rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--grid)}
th,.many td{white-space:nowrap}.many td:first-child{white-space:normal}
td{overflow-wrap:anywhere}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
pre{background:var(--band);padding:.7rem;white-space:pre-wrap;overflow-wrap:anywhere;font-size:.85rem}
details{margin:1.2rem 0}summary{cursor:pointer;font-weight:600}
.images{display:grid;grid-template-columns:repeat(auto-fill,minmax(6.5rem,1fr));gap:.8rem}
.images img{width:100%;image-rendering:pixelated;background:var(--band)}.images figcaption{font-weight:400;
font-size:.75rem;overflow-wrap:anywhere}
.key{display:inline-block;width:1.6em;border-top:3px solid;vertical-align:middle;margin-right:.4em}
@media print{@page{margin:1.5cm}body{max-width:none;padding:0;font-size:12px}h2,h3{break-after:avoid}
.charts{grid-template-columns:1fr 1fr}.charts .charts{grid-template-columns:1fr}
tr{break-inside:avoid}.wide{overflow:visible}}
"""


def document(title: str, body: str) -> str:
    """The whole document around `body`, which is HTML; `title` is text."""
    light = {"bg": "#ffffff"} | {name: pair[0] for name, pair in COLOURS.items()}
    dark = {"bg": "#14181d"} | {name: pair[1] for name, pair in COLOURS.items()}
    colours = (
        f":root{{color-scheme:light dark;{_variables(light)}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{_variables(dark)}}}}}"
    )
    # Whatever may have come in with the data, a browser runs and fetches nothing.
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{colours}{_STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def _variables(colours: Mapping[str, str]) -> str:
    return ";".join(f"--{name}:{colour}" for name, colour in colours.items())
