"""How the page looks: light and dark, wide and narrow, nothing from elsewhere."""

STYLE = """
:root{--paper:#ffffff;--ink:#1b1f24;--quiet:#4d5761;--rule:#c9d1d9;--card:#f4f6f8;
--good:#0b6b2f;--bad:#a4131d;--warn:#7a4b00;
--c0:#0a58b0;--c1:#b3420a;--c2:#0b6b53;--c3:#7d3aa8;--c4:#8a1a56;--c5:#4d5761}
@media (prefers-color-scheme:dark){:root{--paper:#14171a;--ink:#e8ebee;--quiet:#aeb7c0;
--rule:#3a424a;--card:#1e2328;--good:#6fd58f;--bad:#ff8f8a;--warn:#f0bd62;
--c0:#79b8ff;--c1:#ffab70;--c2:#6fd5b0;--c3:#cda4f0;--c4:#f59cc3;--c5:#aeb7c0}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem;max-width:76rem;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.5rem;margin:.2rem 0 .6rem}h2{font-size:1.2rem;margin:1.6rem 0 .6rem}
h3{font-size:1rem;margin:0}h3 span{font-weight:400}
.verdict{border-left:.5rem solid var(--quiet);background:var(--card);padding:.8rem 1rem;margin:0}
.verdict strong{display:block;font-size:1.15rem}
.verdict.learns{border-color:var(--good)}.verdict.learns strong{color:var(--good)}
.verdict.does{border-color:var(--bad)}.verdict.does strong{color:var(--bad)}
.numbers,.origin{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(9.5rem,100%),1fr));
gap:.6rem;margin:1rem 0}
.origin{grid-template-columns:repeat(auto-fill,minmax(min(20rem,100%),1fr))}
dl div{background:var(--card);padding:.4rem .7rem}dt{color:var(--quiet);font-size:.85rem}
dd{margin:0}
.findings{padding-left:1.4rem;margin:0}.findings li{margin:0 0 1rem;padding-left:.3rem}
.findings p{margin:.2rem 0}.sure{color:var(--quiet);font-size:.9rem}
.error h3{color:var(--bad)}.warning h3{color:var(--warn)}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(30rem,100%),1fr));gap:1rem}
figure{margin:0;background:var(--card);padding:.7rem}figcaption{font-weight:600}
figure>svg{display:block;width:100%;height:auto}
svg text{fill:var(--quiet);font:13px system-ui,sans-serif}
@media (max-width:36rem){svg text{font-size:20px}}
.end{text-anchor:end}.middle{text-anchor:middle}
.grid{stroke:var(--rule);stroke-width:1;fill:none}.axis{stroke:var(--quiet);fill:none}
.line{fill:none;stroke-width:2;stroke-linejoin:round}
.line0{stroke:var(--c0)}.line1{stroke:var(--c1);stroke-dasharray:7 3}
.line2{stroke:var(--c2);stroke-dasharray:2 3}.line3{stroke:var(--c3);stroke-dasharray:9 3 2 3}
.line4{stroke:var(--c4)}.line5{stroke:var(--c5);stroke-dasharray:4 4}
.dot{fill:var(--c0)}.mark{stroke:var(--bad);stroke-width:2;fill:none}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.2rem 1rem;margin:.3rem 0 0;padding:0;
font-size:.9rem}
.swatch{width:28px;height:8px;margin-right:.4rem;vertical-align:middle}
.none{color:var(--quiet)}
table{border-collapse:collapse;margin:1rem 0}caption{text-align:left;font-weight:600}
th,td{text-align:left;padding:.25rem .9rem .25rem 0;border-bottom:1px solid var(--rule)}
img{max-width:100%;height:auto;background:#ffffff}
pre{background:var(--card);padding:.8rem;overflow-x:auto;white-space:pre-wrap;font-size:.85rem}
"""
