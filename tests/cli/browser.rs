//! The HTML report in a real browser, Debian's Chromium, headless: nothing overflows at 400 or 1280 pixels, every cell is there and
//! leads to its row, search and arrow keys work, the console stays empty, and a picture is made.
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
  say("ground", getComputedStyle(document.body).backgroundColor);
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

/// Reports to look at: of an agreement, and of an engine with a wrong rope.
fn reports(dir: &Path) -> Vec<(&'static str, PathBuf)> {
    let run = |code: i32, args: &str| {
        let args = shlex::split(args).unwrap();
        let out = Command::new(env!("CARGO_BIN_EXE_twinscope")).args(&args).current_dir(dir).output().unwrap();
        assert_eq!(out.status.code(), Some(code), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    };
    run(0, "diff --subject cpu --decode 2 --report agrees.html");
    // Limits of nothing at all: a page with faults, and with places.
    run(1, "diff --subject cpu --tol q_rope:nmse<=0 --tol expert_down:nmse<=0 --report diverges.html");
    ["agrees", "diverges"].map(|name| (name, dir.join(format!("{name}.html")))).to_vec()
}

#[test]
fn the_report_in_a_browser() {
    let Some(browser) = chromium() else { return };
    let dir = tempfile::tempdir().unwrap();
    let profile = dir.path().join("profile");
    for (name, page) in reports(dir.path()) {
        let html = std::fs::read_to_string(&page).unwrap();
        let probed = dir.path().join("probed.html");
        std::fs::write(&probed, html.replacen("</head>", &format!("{PROBE}</head>"), 1)).unwrap();
        for width in [400, 1280] {
            let framed = |page: &Path| {
                let frame = dir.path().join("frame.html");
                let page = page.file_name().unwrap().to_str().unwrap();
                std::fs::write(&frame, FRAME.replace("WIDTH", &width.to_string()).replace("PAGE", page)).unwrap();
                frame
            };
            let size = format!("--window-size={},2400", width.max(500));
            let out = browse(
                &browser,
                &profile,
                &framed(&probed),
                &[size.clone(), "--dump-dom".into(), "--virtual-time-budget=3000".into()],
            );
            let (dom, log) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
            let console: Vec<&str> = log.lines().filter(|line| line.contains("CONSOLE")).collect();
            assert!(console.is_empty(), "{name} at {width}: {console:?}");
            let root = dom.split("<html").nth(1).and_then(|rest| rest.split('>').next()).unwrap_or_default();
            let said = |what: &str| -> String {
                let value = root.split(&format!(" data-{what}=\"")).nth(1).and_then(|v| v.split('"').next());
                value.unwrap_or_else(|| panic!("{name} at {width} does not say {what}: {root}")).to_string()
            };
            let number = |what: &str| -> i64 { said(what).parse().unwrap() };
            assert!(!root.contains("data-error"), "{name} at {width}: {root}");
            assert_eq!(number("width"), width, "{name}");
            assert_eq!(number("overflow"), 0, "{name} at {width} is wider than its window");
            assert_eq!((number("cells"), number("broken"), number("small")), (4 * 24, 0, 0), "{name} at {width}");
            assert_eq!(
                (number("found"), said("foundright"), number("all")),
                (4, "true".into(), 99),
                "{name} at {width}"
            );
            assert_eq!((number("stops"), said("moved")), (1, "true".into()), "{name} at {width}");
            assert!(number("colours") >= 2 && number("charts") >= 3, "{name} at {width}: {root}");
            for (theme, dark) in [("light", false), ("dark", true)] {
                let picture = dir.path().join(format!("{name}-{width}-{theme}.png"));
                let mut args = vec![format!("--screenshot={}", picture.display()), size.clone()];
                if dark {
                    args.push("--blink-settings=preferredColorScheme=0".into());
                }
                browse(&browser, &profile, &framed(&page), &args);
                let bytes = std::fs::read(&picture).expect("a picture");
                assert!(
                    bytes.starts_with(b"\x89PNG") && bytes.len() > 10_000,
                    "{name} at {width}: {} bytes",
                    bytes.len()
                );
                if let Some(keep) = std::env::var_os("TWINSCOPE_SCREENSHOTS") {
                    std::fs::copy(&picture, Path::new(&keep).join(picture.file_name().unwrap())).expect("a folder");
                }
            }
        }
    }
}
