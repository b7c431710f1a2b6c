//! The HTML report in a real browser, Debian's Chromium, headless, at 400 and 1280 pixels, light and dark: the parts are there in their order,
//! nothing overflows, every text stands out from what is behind it, every cell is there and leads to its row, search and keys work, the console stays
//! empty, and a picture is made.
//!
//! Where no Chromium is found the test says so and passes, unless `TWINSCOPE_BROWSER_TEST=required` is set, as in CI, where it fails.
//! `TWINSCOPE_SCREENSHOTS=DIR` keeps the pictures, in light and dark, for a person to look at.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The page stands in a frame: a window of Chromium is never narrower than 500 pixels, a frame is as wide as it is told.
const FRAME: &str = r##"<!doctype html><html><head><meta name="color-scheme" content="light dark">
<style>body { margin: 0 } iframe { display: block; border: 0; width: WIDTHpx; height: 2400px }</style>
<script>addEventListener("message", event => document.documentElement.setAttribute("data-" + event.data[0], event.data[1]))</script>
</head><body><iframe src="PAGE"></iframe></body></html>"##;

/// What the page is asked for when it has been laid out: told to the frame around it, and read from the dumped document.
const PROBE: &str = r##"<script>
const say = (name, value) => parent.postMessage([name, String(value)], "*");
addEventListener("error", event => say("error", event.message));
addEventListener("securitypolicyviolation", event => say("error", event.violatedDirective));
addEventListener("load", () => {
  const page = document.documentElement;
  say("width", innerWidth);
  say("overflow", page.scrollWidth - page.clientWidth);
  const cells = [...document.querySelectorAll("#heat td a")];
  say("cells", cells.length);
  say("broken", [...document.querySelectorAll("a[href^='#']")].filter(a => !document.getElementById(a.getAttribute("href").slice(1))).length);
  say("small", cells.filter(a => a.getBoundingClientRect().width < 5 || a.getBoundingClientRect().height < 12).length);
  const colours = new Set([...document.querySelectorAll("#heat td")].map(td => getComputedStyle(td).backgroundColor));
  say("colours", colours.size);
  say("parts", [...document.querySelectorAll("main > section")].map(part => part.id).join(" "));
  say("views", [...new Set([...document.querySelectorAll("figcaption")].map(c => c.textContent.split(",")[0]))].join("; "));
  // Styles are in oklch; a pixel of that colour is in sRGB. Contrast as WCAG 2 defines it, of each text on what is behind it.
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const pixel = colour => {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    return [...pen.getImageData(0, 0, 1, 1).data];
  };
  const linear = v => v <= 10.31475 ? v / 3294.6 : ((v / 255 + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const ground = pixel(getComputedStyle(at).backgroundColor);
      if (ground[3] === 255) return ground;
      if (ground[3] !== 0) say("error", "a ground that can be seen through");
    }
    return pixel("Canvas");
  };
  say("ground", Math.round(100 * light(behind(document.body))));
  const open = [...document.querySelectorAll("details")].map(part => [part, part.open]);
  open.forEach(([part]) => part.open = true);
  // A report may have any step of the scale.
  const scale = document.body.appendChild(document.createElement("p"));
  scale.innerHTML = [...Array(16).keys()].map(n => `<b class="${"hq"[n >> 3]}${n & 7}">step ${n & 7}</b>`).join("");
  let faintest = [99, ""], texts = 0;
  for (const element of document.querySelectorAll("body *:not(script)")) {
    const text = [...element.childNodes].filter(n => n.nodeType === 3).map(n => n.data.trim()).join("");
    if (!text || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(pixel(element.closest("svg") ? style.fill : style.color)), light(behind(element))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    texts += 1;
    if (contrast < faintest[0]) faintest = [contrast, element.tagName + " " + element.className + ": " + text.slice(0, 40)];
  }
  scale.remove();
  open.forEach(([part, was]) => part.open = was);
  say("texts", texts);
  say("contrast", faintest[0].toFixed(2));
  say("faintest", faintest[1].replaceAll('"', "'"));
  say("charts", document.querySelectorAll("svg").length);
  // Search leaves what it finds.
  const find = document.getElementById("find");
  find.value = "q_rope";
  find.dispatchEvent(new Event("input"));
  const rows = [...document.querySelectorAll("#stages tr[data-kind]")];
  say("found", rows.filter(row => !row.hidden).length);
  say("foundright", rows.filter(row => !row.hidden).every(row => row.textContent.includes("q_rope")));
  find.value = "";
  find.dispatchEvent(new Event("input"));
  say("all", rows.filter(row => !row.hidden).length);
  // The map is one stop of the Tab key, and an arrow moves.
  say("stops", cells.filter(a => a.tabIndex === 0).length);
  const start = cells.find(a => a.tabIndex === 0);
  start.focus();
  start.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
  say("moved", document.activeElement !== start && cells.includes(document.activeElement));
  // Tab goes from the way past everything to the parts, the map, the search.
  const tabbed = [...document.querySelectorAll("a[href], input, select, summary")].filter(e => e.tabIndex === 0 && e.getClientRects().length);
  const places = [".skip", "nav a", "#heat td a", "#find"].map(at => tabbed.findIndex(e => e.matches(at)));
  say("tabs", places[0] === 0 && places.every((at, i) => i === 0 || at > places[i - 1]) && !document.querySelector("[tabindex]:not([tabindex='0'], [tabindex='-1'])"));
  // A cell's link opens the part that its row is in.
  const cell = cells.find(a => !document.getElementById(a.getAttribute("href").slice(1)).closest("details").open) || cells[0];
  const row = document.getElementById(cell.getAttribute("href").slice(1));
  addEventListener("hashchange", () => say("led", row.closest("details").open && row.getClientRects().length === 1));
  cell.click();
});
</script>"##;

/// The browser, or why there is none.
fn chromium() -> Option<PathBuf> {
    let named = ["chromium", "chromium-browser", "google-chrome"];
    let found = std::env::var_os("PATH").and_then(|path| {
        std::env::split_paths(&path).flat_map(|dir| named.map(|name| dir.join(name))).find(|file| file.is_file())
    });
    let required = std::env::var("TWINSCOPE_BROWSER_TEST").is_ok_and(|v| v == "required");
    assert!(found.is_some() || !required, "TWINSCOPE_BROWSER_TEST=required, and no chromium is on the PATH");
    if found.is_none() {
        eprintln!(
            "NOT TESTED: no chromium on the PATH (Debian: apt-get install chromium), so no browser looked at the report"
        );
    }
    found
}

fn browse(browser: &Path, profile: &Path, page: &Path, args: &[String]) -> Output {
    let url = format!("file://{}", page.display());
    let out = Command::new(browser)
        // A container has no user namespaces for the sandbox and a small /dev/shm; the page is this program's own.
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"])
        .args(["--no-first-run", "--disable-background-networking", "--enable-logging=stderr", "--log-level=0"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .args(args)
        .arg(url)
        .output()
        .expect("chromium runs");
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    out
}

/// A report to look at.
struct Page {
    name: &'static str,
    layers: i64,
    /// The stages that its tables list.
    rows: i64,
    parts: &'static str,
    /// What it has pictures of, besides the map.
    views: &'static [&'static str],
}

const GROWTH: [&str; 2] = ["Relative error that a layer hands on", "Largest own error in a layer"];
const PAGES: [Page; 3] = [
    Page {
        name: "agrees",
        layers: 4,
        rows: 99,
        parts: "map growth logits routers stages made",
        views: &[GROWTH[0], GROWTH[1], "KL divergence by position"],
    },
    Page {
        name: "diverges",
        layers: 4,
        rows: 99,
        parts: "fault map growth places logits routers stages made",
        views: &[GROWTH[0], GROWTH[1], "By position", "By head", "By expert", "KL divergence by position"],
    },
    Page {
        name: "flips",
        layers: 2,
        rows: 51,
        parts: "fault map growth logits routers stages made",
        views: &[GROWTH[0], "KL divergence by position"],
    },
];

/// The reports: of an agreement, of limits of nothing at all, which leave faults that have places, and of two files whose routers choose otherwise.
fn reports(dir: &Path) {
    let run = |code: i32, args: &str| {
        let args = shlex::split(args).unwrap();
        let out = Command::new(env!("CARGO_BIN_EXE_twinscope")).args(&args).current_dir(dir).output().unwrap();
        assert_eq!(out.status.code(), Some(code), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    };
    run(0, "diff --subject cpu --decode 2 --report agrees.html");
    run(1, "diff --subject cpu --tol attn_scores:nmse<=0 --tol expert_down:nmse<=0 --report diverges.html");
    for ty in ["Q8_0", "Q2_K"] {
        run(0, &format!("synth --layers 2 --pure {ty} {ty}.gguf"));
        run(0, &format!("trace {ty}.gguf --tokens 1,2,3,4,5,6,7 --save all --out {ty}"));
    }
    run(1, "compare Q8_0 Q2_K --report flips.html");
    let html = std::fs::read_to_string(dir.join("flips.html")).unwrap();
    assert!(
        html.contains("not explained by rounding") && html.contains("<td class=\"bad\">reference "),
        "flips are listed"
    );
}

#[test]
fn the_report_in_a_browser() {
    let Some(browser) = chromium() else { return };
    let dir = tempfile::tempdir().unwrap();
    let profile = dir.path().join("profile");
    reports(dir.path());
    for Page { name, layers, rows, parts, views } in PAGES {
        let page = dir.path().join(format!("{name}.html"));
        let html = std::fs::read_to_string(&page).unwrap();
        let probed = dir.path().join("probed.html");
        std::fs::write(&probed, html.replacen("</head>", &format!("{PROBE}</head>"), 1)).unwrap();
        for (width, theme) in [(400, "light"), (400, "dark"), (1280, "light"), (1280, "dark")] {
            let at = format!("{name} at {width}, {theme}");
            let framed = |page: &Path| {
                let frame = dir.path().join("frame.html");
                let page = page.file_name().unwrap().to_str().unwrap();
                std::fs::write(&frame, FRAME.replace("WIDTH", &width.to_string()).replace("PAGE", page)).unwrap();
                frame
            };
            let mut look = vec![format!("--window-size={},2400", width.max(500))];
            if theme == "dark" {
                look.push("--blink-settings=preferredColorScheme=0".into());
            }
            let args = [&look[..], &["--dump-dom".into(), "--virtual-time-budget=3000".into()]].concat();
            let out = browse(&browser, &profile, &framed(&probed), &args);
            let (dom, log) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
            let console: Vec<&str> = log.lines().filter(|line| line.contains("CONSOLE")).collect();
            assert!(console.is_empty(), "{at}: {console:?}");
            let root = dom.split("<html").nth(1).and_then(|rest| rest.split('>').next()).unwrap_or_default();
            let said = |what: &str| -> String {
                let value = root.split(&format!(" data-{what}=\"")).nth(1).and_then(|v| v.split('"').next());
                value.unwrap_or_else(|| panic!("{at} does not say {what}: {root}")).to_string()
            };
            let number = |what: &str| -> i64 { said(what).parse().unwrap() };
            assert!(!root.contains("data-error"), "{at}: {root}");
            assert_eq!((number("width"), number("overflow")), (width, 0), "{at}: wider than its window");
            assert_eq!((said("parts"), said("views")), (parts.into(), views.join("; ")), "{at}");
            assert_eq!((number("cells"), number("broken"), number("small")), (layers * 24, 0, 0), "{at}");
            assert_eq!((number("found"), said("foundright"), number("all")), (layers, "true".into(), rows), "{at}");
            assert_eq!((number("stops"), said("moved"), said("tabs"), said("led")), yes(1), "{at}");
            assert!(number("colours") >= 2 && number("charts") >= views.len() as i64 / 2, "{at}: {root}");
            let bright = number("ground") > 50;
            assert_eq!(bright, theme == "light", "{at}: {root}");
            let contrast: f64 = said("contrast").parse().unwrap();
            assert!(contrast >= 4.5 && number("texts") > 100, "{at}: {contrast} of {:?}", said("faintest"));

            let picture = dir.path().join(format!("{name}-{width}-{theme}.png"));
            let args = [&look[..], &[format!("--screenshot={}", picture.display())]].concat();
            browse(&browser, &profile, &framed(&page), &args);
            let bytes = std::fs::read(&picture).expect("a picture");
            assert!(bytes.starts_with(b"\x89PNG") && bytes.len() > 10_000, "{at}: {} bytes", bytes.len());
            if let Some(keep) = std::env::var_os("TWINSCOPE_SCREENSHOTS") {
                std::fs::copy(&picture, Path::new(&keep).join(picture.file_name().unwrap())).expect("a folder");
            }
        }
    }
}

fn yes(n: i64) -> (i64, String, String, String) {
    (n, "true".into(), "true".into(), "true".into())
}
