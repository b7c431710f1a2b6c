use serde_json::Value as Json;

use super::*;

fn chat(template: &str) -> Chat {
    Chat {
        template: template.into(),
        bos: "<s>".into(),
        eos: "</s>".into(),
        system: None,
        user: "Hi".into(),
        variables: vec![],
        now: 0,
    }
}

fn rendered(template: &str) -> String {
    chat(template).render().unwrap()
}

fn refused(template: &str) -> String {
    let error = chat(template).render().unwrap_err();
    assert!(!error.chars().any(char::is_control) && error.len() < 5000, "{error}");
    error
}

/// What transformers' jinja2 makes of published templates: `scripts/chat_templates.py` wrote it.
#[test]
fn published_templates_are_rendered_as_transformers_renders_them() {
    let folder = crate::files::beside_the_sources("tests/data/chat");
    let plan: Json = serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
    let text = |name: &str| plan[name].as_str().unwrap().to_string();
    for (name, expected) in plan["expected"].as_object().unwrap() {
        let template = std::fs::read_to_string(folder.join(format!("{name}.jinja"))).unwrap();
        for (case, system) in [("user", None), ("system", Some(text("system")))] {
            let now = plan["now"].as_u64().unwrap();
            let found = Chat { system, user: text("user"), now, ..chat(&template) }.render();
            match (&expected[case], found) {
                (Json::String(expected), found) => assert_eq!(found.as_ref(), Ok(expected), "{name}, {case}"),
                (refused, Err(found)) => {
                    let expected = refused["refused"].as_str().unwrap();
                    assert!(found.ends_with(&format!("it says: {expected}")), "{name}, {case}: {found}");
                }
                (_, Ok(found)) => panic!("{name}, {case} is refused by transformers; found {found:?}"),
            }
        }
    }
}

#[test]
fn python_of_templates_is_python() {
    assert_eq!(rendered("{{ [none, true, 1.0, 'é<\\n'] | tojson }}"), r#"[null, true, 1.0, "é<\n"]"#);
    assert_eq!(rendered("{{ 'é😀' | tojson(ensure_ascii=True) }}"), r#""\u00e9\ud83d\ude00""#);
    assert_eq!(
        rendered("{{ {'a': [1, {}], 'b': 'x'} | tojson(indent=2) }}"),
        "{\n  \"a\": [\n    1,\n    {}\n  ],\n  \"b\": \"x\"\n}"
    );
    assert_eq!(
        rendered("{{ strftime_now('%d %b %Y, %A %-d %B %y %H:%M:%S %I%p %F %%') }}"),
        "01 Jan 1970, Thursday 1 January 70 00:00:00 12AM 1970-01-01 %"
    );
    assert!(refused("{{ strftime_now('%Q') }}").contains("%Q of \"%Q\" is not supported"));
    let methods = "{{ ' a b '.strip().split(' ') | join('-') }}{{ 'abc'.startswith('ab') }}{{ {'a': 1}.get('b', 2) }}";
    assert_eq!(rendered(methods), "a-bTrue2");
    assert_eq!(rendered("{% generation %}\n  a{%- endgeneration -%} b"), "  ab");
    assert_eq!(rendered("{% for i in [1, 2, 3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}"), "13");
}

#[test]
fn what_is_wrong_with_a_template_is_one_line() {
    assert_eq!(refused("a\n{{ raise_exception('no \x1b[2J\nway') }}"), "line 2: it says: no \\u{1b}[2J\\nway");
    assert!(refused("a\n{% if %}").starts_with("line 2: syntax error: "));
    assert!(refused("{{ a.b.c }}").starts_with("line 1: undefined value"));
    assert!(refused("{% include '/etc/passwd' %}").starts_with("line 1: syntax error: unknown statement"));
    assert!(refused("{{ 'x'.nothing() }}").contains("no method named nothing"));
    assert!(refused(&"x".repeat(MOST_TEMPLATE + 1)).starts_with("expected at most 262144 bytes, found 262145"));
}

#[test]
fn a_template_ends_and_makes_no_more_than_it_may() {
    let fuel = "it does not end, or makes too much";
    let doubled = "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}";
    for template in [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 10000000000 }}",
        "{{ '%1000000000d' | format(3) }}",
        "{{ 'a\nb' | indent(1000000000) }}",
        doubled,
    ] {
        assert!(refused(template).ends_with(fuel), "{template}");
    }
    let long = "{% for i in range(40000) %}0123456789012345678901234567{% endfor %}";
    assert_eq!(refused(long), "it makes more than 1048576 bytes of text beside the messages");
    assert!(refused("{{ '{:>1000000000}'.format(3) }}").contains("fields with a : are not supported"));
    assert!(refused("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").contains("recursion limit"));
    // A list that has another twice, sixty times: short to make, and nothing to be written out.
    let nested = "{% set n = namespace(x=['a']) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}";
    assert!(refused(&format!("{nested}{{{{ n.x | tojson }}}}")).ends_with("tojson: the value is too large"));
    assert_eq!(refused(&format!("{nested}{{{{ n.x == [n.x] }}}}{{{{ n.x }}}}")), "it has not ended after 10s");
    // Parsed by recursion, at the longest.
    rendered(&format!("{{{{ 1{} }}}}", "+1".repeat(100_000)));
    assert!(refused(&format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000))).contains("recursion"));
}

#[test]
fn a_long_message_is_no_fault_of_the_template() {
    let user = "é".repeat(1 << 20);
    let template =
        "{% for m in messages %}{% set text = m.content | trim %}[{{ m.role }}] {{ text }}{{ eos_token }}{% endfor %}";
    let text = Chat { user: user.clone(), ..chat(template) }.render().unwrap();
    assert_eq!(text, format!("[user] {user}</s>"));
}
