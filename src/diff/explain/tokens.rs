//! Embeddings of other tokens: which rows of the table the wrong positions hold, and what map of tokens gives those.
//!
//! - **Looked up, not guessed.** A wrong position's output is sought in the whole table, so that a modulus or a distance is read off what
//!   is there: a modulus divides every token less the row in its place.
//! - What was searched is paid for: a number out of so many costs the bits to say which (`Variant::assuming`).
//! - Where the prompt's tokens allow several numbers, all are said.

use rayon::prelude::*;

use super::case::{Evidence, Variant};
use super::indices::{OF_ROWS, SEEN};
use super::wrapped::{Ending, endings};
use crate::error::Result;
use crate::formula::embed::Embedding;
use crate::formula::linear::{Decode, as_it_is};
use crate::op::{Op, Weight};

/// Wrong positions that are looked up.
const LOOKED_UP: usize = 16;

/// Of a row that is the one: the share of the output's energy that it may leave.
const LEFT: f64 = 1e-3;

/// A position with more equal rows than this says nothing of which it is.
const ALIKE: usize = 4;

/// Numbers that are all said in words.
const SAID: usize = 4;

/// Rows, or positions, of other tokens by a rule that needs no number; or at a distance that is looked up.
pub fn others<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Op::Embed { table, tokens, .. } = case.scene.op else { return Ok(vec![]) };
    let (first, last) = (tokens[0], tokens.len() - 1);
    type Other<'t> = &'t dyn Fn(usize, u32) -> u32;
    let rules: [(&str, Other<'_>); 6] = [
        ("the row after the token's", &|_, token| token + 1),
        ("the row before the token's", &|_, token| token.saturating_sub(1)),
        ("the embedding of the position before", &|t, _| tokens[t.saturating_sub(1)]),
        ("the embedding of the position after", &|t, _| tokens[(t + 1).min(last)]),
        ("the first token's embedding at every position", &|_, _| first),
        ("row 0 for every token", &|_, _| 0),
    ];
    let mut all = Vec::new();
    for (what, other) in rules {
        let row = |(t, token): (usize, &u32)| (other(t, *token) as usize).min(table.rows - 1);
        let rows = tokens.iter().enumerate().map(row).collect();
        let variant = case.changed(what, |e: &mut Embedding<'a>| e.rows = rows)?;
        all.extend(variant.map(|variant| variant.in_runs(OF_ROWS)));
    }
    let held = held(case, table, tokens)?;
    // Too few tokens to tell a rule by: the rows that they have.
    if !held.is_empty() && held.len() < SEEN {
        // Of one token a modulus that leaves the others as they are is as good as any other reason.
        let right = right(case, tokens);
        let modulus = |h: &LookedUp| {
            let powers = (1..32).map(|bits| 1usize << bits).take_while(|m| *m <= h.token);
            let mut fitting = powers.filter(|m| h.token % m == h.rows[0] && right.iter().all(|token| token < m));
            let found = fitting.next().filter(|_| held.len() == 1);
            found.map_or(String::new(), |m| format!(" ({} modulo {m})", h.token))
        };
        let what: Vec<String> =
            held.iter().map(|h| format!("row {} for token {}{}", h.rows[0], h.token, modulus(h))).collect();
        let own = |row: &mut usize| *row = held.iter().find(|h| h.token == *row).map_or(*row, |h| h.rows[0]);
        let variant = case.changed(what.join(" and "), |e: &mut Embedding<'a>| e.rows.iter_mut().for_each(own))?;
        all.extend(variant.map(|variant| variant.assuming(held.len() as f64 * bits(table.rows))));
    }
    // A token with fewer before it than the distance has the table's first row, or one from its end; with fewer after it the reverse.
    for (ends, of) in [("", clamped as fn(i64, i64) -> i64), (", round the table's ends", i64::rem_euclid)] {
        let row = |token: usize, d: i64| of(token as i64 + d, table.rows as i64) as usize;
        if let Some(d) = distance(&held, row) {
            let what = format!("the row {} {} the token's{ends}", d.abs(), if d > 0 { "after" } else { "before" });
            let shift = |e: &mut Embedding<'a>| e.rows.iter_mut().for_each(|r| *r = row(*r, d));
            let variant = case.changed(what, shift)?;
            all.extend(variant.map(|variant| variant.assuming(bits(table.rows)).along(OF_ROWS)));
            break;
        }
    }
    Ok(all)
}

/// Rows of tokens modulo a number, or none past a table's end: the ends that the first wrong token suggests, and those that are looked up.
pub fn wrapped<'a>(case: &'a Evidence<'a>, table: &Weight, tokens: &[u32]) -> Result<Vec<Variant<'a>>> {
    let cols = case.cols();
    let wrong = case.wrong.iter().map(|i| tokens[i / cols] as usize).min().unwrap_or(0);
    let mut all = Vec::new();
    let mut add = |ending: Ending, words: String, bits: f64| {
        let change =
            |e: &mut Embedding<'a>| e.rows.iter_mut().for_each(|row| *row = ending.of(*row).min(table.rows - 1));
        let variant = case.changed(format!("the rows of {words}"), change)?;
        all.extend(variant.map(|variant| variant.assuming(bits).along(OF_ROWS)));
        Result::Ok(())
    };
    let (held, right) = (held(case, table, tokens)?, right(case, tokens));
    // One token alone has some modulus, or an end, for whatever it was given.
    if !case.unseen && held.len() == 1 {
        return Ok(vec![]);
    }
    for ending in endings(wrong) {
        add(ending, ending.words("tokens"), 0.0)?;
    }
    let moduli = moduli(&held, &right);
    if let Some(&modulus) = moduli.first() {
        let others = match moduli.len() {
            1 => String::new(),
            n if n <= SAID => format!(" (or {}: no token tells)", said(&moduli[1..])),
            n => format!(" (or {} or {} others: no token tells)", said(&moduli[1..SAID]), n - SAID),
        };
        add(Ending::Modulo(modulus), format!("{}{others}", Ending::Modulo(modulus).words("tokens")), bits(wrong))?;
    }
    if let Some(last) = shared_row(&held) {
        let ending = Ending::Last(last + 1);
        add(ending, ending.words("tokens"), bits(wrong))?;
    }
    Ok(all)
}

/// The row, or the first or last of the table's where there is none.
fn clamped(row: i64, rows: i64) -> i64 {
    row.clamp(0, rows - 1)
}

/// The distance of more than one row at which every looked-up token finds the row that it has. One token alone has some distance to
/// whatever it was given.
fn distance(held: &[LookedUp], row: impl Fn(usize, i64) -> usize) -> Option<i64> {
    let (one, more) = held.split_first()?;
    more.iter().find(|h| h.token != one.token)?;
    // Of a token whose row is the table's end the distance is not known: any of the others says it.
    let all = held.iter().flat_map(|h| h.rows.iter().map(|row| *row as i64 - h.token as i64));
    all.filter(|d| d.abs() > 1 && held.iter().all(|h| h.rows.contains(&row(h.token, *d)))).min_by_key(|d| d.abs())
}

/// Bits to say one number of `n`.
fn bits(n: usize) -> f64 {
    (n.max(1) as f64).log2()
}

/// `200, 100`
fn said(numbers: &[usize]) -> String {
    numbers.iter().map(|n| n.to_string()).collect::<Vec<_>>().join(", ")
}

/// The tokens of the positions that are right.
fn right(case: &Evidence<'_>, tokens: &[u32]) -> Vec<usize> {
    let cols = case.cols();
    let mut wrong = vec![false; tokens.len()];
    case.wrong.iter().for_each(|i| wrong[i / cols] = true);
    tokens.iter().zip(wrong).filter(|(_, wrong)| !wrong).map(|(token, _)| *token as usize).collect()
}

/// A wrong position's token, and the rows of the table that it may hold.
struct LookedUp {
    token: usize,
    rows: Vec<usize>,
}

/// What wrong positions hold, of those that hold a row of the table.
fn held(case: &Evidence<'_>, table: &Weight, tokens: &[u32]) -> Result<Vec<LookedUp>> {
    let cols = case.cols();
    let Some(stated) = case.stated::<Embedding<'_>>()? else { return Ok(vec![]) };
    let mut positions: Vec<usize> = case.wrong.iter().map(|i| i / cols).collect();
    positions.dedup();
    // Each token once: what it is given does not depend on where it stands.
    let mut seen = Vec::new();
    positions.retain(|t| {
        let new = !seen.contains(&tokens[*t]);
        seen.push(tokens[*t]);
        new
    });
    positions.truncate(LOOKED_UP);
    let wanted = |t: usize| (&case.output[t * cols..][..cols], t);
    let energy = |values: &[f64]| values.iter().map(|x| x * x).sum::<f64>();
    let wanted: Vec<(&[f64], f64, usize)> = positions
        .into_iter()
        .map(wanted)
        .map(|(values, t)| (values, energy(values), t))
        .filter(|(_, energy, _)| energy.is_finite() && *energy > 0.0)
        .collect();
    if wanted.is_empty() {
        return Ok(vec![]);
    }
    let mut decode: Decode<'_> = as_it_is(table);
    case.emulation.round(&mut decode);
    // The table's rows that each of `wanted` may be.
    let found = |rows: std::ops::Range<usize>| -> Result<Vec<(usize, usize)>> {
        let (mut product, mut offset) = (vec![0.0; cols], vec![0.0; cols]);
        let mut found = Vec::new();
        for row in rows {
            decode(0, row, &mut product, &mut offset)?;
            for (n, (values, energy, _)) in wanted.iter().enumerate() {
                let most = LEFT * energy;
                let mut left = 0.0;
                let within = values.iter().zip(product.iter().zip(&offset)).all(|(y, (p, o))| {
                    left += (y - (p - o) * stated.scale).powi(2);
                    left <= most
                });
                if within {
                    found.push((n, row));
                }
            }
        }
        Ok(found)
    };
    const STEP: usize = 256;
    let steps: Vec<_> = (0..table.rows).step_by(STEP).map(|row| row..(row + STEP).min(table.rows)).collect();
    let found: Vec<Vec<(usize, usize)>> = steps.into_par_iter().map(found).collect::<Result<_>>()?;
    let mut all: Vec<LookedUp> =
        wanted.iter().map(|(.., t)| LookedUp { token: tokens[*t] as usize, rows: Vec::new() }).collect();
    found.into_iter().flatten().for_each(|(n, row)| all[n].rows.push(row));
    all.retain(|h| !h.rows.is_empty() && h.rows.len() <= ALIKE);
    Ok(all)
}

/// The moduli that give every looked-up token the row that it has: powers of two first, then the larger ones first. Those that leave the
/// right tokens as they are, if any does.
fn moduli(held: &[LookedUp], right: &[usize]) -> Vec<usize> {
    let gives = |h: &LookedUp, modulus: usize| h.rows.contains(&(h.token % modulus));
    let Some(first) = held.first() else { return vec![] };
    // A modulus divides the first token less its row, and is larger than the row.
    let mut all: Vec<usize> = Vec::new();
    for &row in first.rows.iter().filter(|row| **row < first.token) {
        all.extend(divisors(first.token - row).filter(|m| *m > row && held.iter().all(|h| gives(h, *m))));
    }
    if all.iter().any(|m| right.iter().all(|token| token < m)) {
        all.retain(|m| right.iter().all(|token| token < m));
    }
    all.sort_by_key(|m| (!m.is_power_of_two(), std::cmp::Reverse(*m)));
    all.dedup();
    all
}

/// The row that all of several tokens have, which lies before each.
fn shared_row(held: &[LookedUp]) -> Option<usize> {
    let (first, rest) = held.split_first()?;
    let shared = first.rows.iter().find(|row| rest.iter().all(|h| h.rows.contains(row)))?;
    (!rest.is_empty() && held.iter().all(|h| h.token > *shared)).then_some(*shared)
}

fn divisors(n: usize) -> impl Iterator<Item = usize> {
    let small = (1..).take_while(move |d| d * d <= n).filter(move |d| n.is_multiple_of(*d));
    small.flat_map(move |d| [d, n / d])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(pairs: &[(usize, &[usize])]) -> Vec<LookedUp> {
        pairs.iter().map(|(token, rows)| LookedUp { token: *token, rows: rows.to_vec() }).collect()
    }

    #[test]
    fn a_modulus_divides_what_every_token_lost() {
        // 999 → 199 and 1403 → 3: 800 and 1400 have the divisors 200, 100, 50, …; only 200 is larger than 199.
        assert_eq!(moduli(&held(&[(999, &[199]), (1403, &[3])]), &[]), [200]);
        // 211 → 11 and 299 → 99: 200 and 100 both; a right token of 150 leaves the one that it is smaller than.
        assert_eq!(moduli(&held(&[(211, &[11]), (299, &[99])]), &[]), [200, 100]);
        assert_eq!(moduli(&held(&[(211, &[11]), (299, &[99])]), &[150]), [200]);
        // A power of two is what somebody meant; 1000 − 232 = 768 has 256, 384 and 768 itself besides.
        assert_eq!(moduli(&held(&[(1000, &[232])]), &[]), [256, 768, 384]);
        // Of two rows alike the one that fits the others.
        assert_eq!(moduli(&held(&[(999, &[17, 199]), (1403, &[3])]), &[]), [200]);
        assert!(moduli(&held(&[(10, &[20])]), &[]).is_empty());
    }

    #[test]
    fn a_distance_is_that_of_the_tokens_that_have_as_many_before_them() {
        let before = |token: usize, d: i64| clamped(token as i64 + d, 300) as usize;
        // 11 and 42 have no row 100 before theirs: the table's first.
        let ends = held(&[(11, &[0]), (299, &[199]), (42, &[0]), (211, &[111])]);
        assert_eq!(distance(&ends, before), Some(-100));
        let round = |token: usize, d: i64| (token as i64 + d).rem_euclid(300) as usize;
        let wrapped = held(&[(11, &[211]), (299, &[199]), (42, &[242])]);
        assert_eq!((distance(&wrapped, before), distance(&wrapped, round)), (None, Some(-100)));
        // One token alone, and two of which the second has another.
        assert_eq!(distance(&held(&[(299, &[199])]), before), None);
        assert_eq!(distance(&held(&[(299, &[199]), (211, &[112])]), before), None);
    }

    #[test]
    fn a_tables_end_is_one_row_for_several_tokens() {
        assert_eq!(shared_row(&held(&[(999, &[499]), (700, &[3, 499])])), Some(499));
        assert_eq!(shared_row(&held(&[(999, &[499])])), None);
        assert_eq!(shared_row(&held(&[(999, &[499]), (300, &[499])])), None);
    }
}
