//! `${...}` in texts and keys.

use std::collections::BTreeMap;

use super::yaml::{Node, NodeKind};

/// The variables that a step may name: a case's values and the indexes of the loops around it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Vars(pub BTreeMap<String, Node>);

impl Vars {
    /// Sets a text variable.
    pub fn set(&mut self, name: &str, value: impl ToString) {
        let kind = NodeKind::Scalar {
            text: value.to_string(),
            plain: true,
        };
        self.0.insert(name.to_string(), Node { line: 0, kind });
    }

    /// The list or mapping that a whole value `${name}` stands for, if it is one.
    pub fn structure(&self, text: &str) -> Option<&Node> {
        let name = text.strip_prefix("${")?.strip_suffix('}')?;
        let node = self.0.get(name)?;
        (!matches!(node.kind, NodeKind::Scalar { .. })).then_some(node)
    }

    /// Replaces every `${...}`; `$${` stands for `${`.
    ///
    /// # Errors
    /// Says which variable is not known, or what is wrong with the expression.
    pub fn replace(&self, text: &str) -> Result<String, String> {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(start) = rest.find("${") {
            if rest[..start].ends_with('$') {
                out.push_str(&rest[..start - 1]);
                out.push_str("${");
                rest = &rest[start + 2..];
                continue;
            }
            out.push_str(&rest[..start]);
            let inner = &rest[start + 2..];
            let end =
                closing(inner).ok_or_else(|| format!("expected `}}` after `${{` in `{text}`"))?;
            out.push_str(&self.value(&inner[..end])?);
            rest = &inner[end + 1..];
        }
        out.push_str(rest);
        Ok(out)
    }

    fn value(&self, expression: &str) -> Result<String, String> {
        let expression = self.replace(expression)?;
        if let Some(args) = expression.strip_prefix("repeat ") {
            let repeated = args
                .rsplit_once(' ')
                .and_then(|(text, n)| Some((text, n.parse::<usize>().ok()?)));
            return match repeated {
                Some((text, n)) if text.len().saturating_mul(n) <= 16 << 20 => Ok(text.repeat(n)),
                _ => Err(format!(
                    "expected `${{repeat TEXT N}}`, found `${{{expression}}}`"
                )),
            };
        }
        if let Some(named) = self.0.get(expression.as_str()) {
            let text = named.scalar().ok_or_else(|| {
                format!(
                    "expected text in `${{{expression}}}`, found {}",
                    named.describe()
                )
            })?;
            if !text.contains("${") {
                return Ok(text.to_string());
            }
            // A row's value may itself be an expression; one that names itself is not known in it.
            let mut others = self.clone();
            others.0.remove(expression.as_str());
            return others.replace(text);
        }
        if let Some(at) = expression.rfind(['+', '-'])
            && let Some(base) = self.0.get(&expression[..at])
        {
            let sum = base
                .scalar()
                .and_then(|t| t.parse::<i64>().ok())
                .zip(expression[at..].parse::<i64>().ok())
                .and_then(|(a, b)| a.checked_add(b));
            return sum
                .map(|n| n.to_string())
                .ok_or_else(|| format!("expected numbers in `${{{expression}}}`"));
        }
        let known: Vec<&str> = self.0.keys().map(String::as_str).collect();
        Err(match known.as_slice() {
            [] => format!("unknown variable `${{{expression}}}`; there are none here"),
            known => format!(
                "unknown variable `${{{expression}}}`; here are: {}",
                known.join(", ")
            ),
        })
    }
}

/// Where the `}` stands that closes an expression, its inner `${...}` passed over.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0;
    let bytes = text.as_bytes();
    for (i, b) in bytes.iter().enumerate() {
        match b {
            b'{' if i > 0 && bytes[i - 1] == b'$' => depth += 1,
            b'}' if depth == 0 => return Some(i),
            b'}' => depth -= 1,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn vars() -> Vars {
        let mut v = Vars::default();
        v.set("i", 3);
        v.set("c", "xy");
        v.set("n", 2);
        v.set("top-dir", "t");
        v.set("long", "${repeat ${n} 5}");
        v.set("loop", "${loop}");
        v
    }

    #[rstest]
    #[case("plain", "plain")]
    #[case("l${i}/${c}", "l3/xy")]
    #[case("${i-1} ${i+10}", "2 13")]
    #[case("${repeat x 4}", "xxxx")]
    #[case("${repeat ${c} ${n}}", "xyxy")]
    #[case("${long}", "22222")]
    #[case("${top-dir}", "t")]
    #[case("$${i} costs $5", "${i} costs $5")]
    fn replaces(#[case] text: &str, #[case] expected: &str) {
        assert_eq!(vars().replace(text).unwrap(), expected);
    }

    #[rstest]
    #[case(
        "${nope}",
        "unknown variable `${nope}`; here are: c, i, long, loop, n, top-dir"
    )]
    #[case(
        "${loop}",
        "unknown variable `${loop}`; here are: c, i, long, n, top-dir"
    )]
    #[case("${i", "expected `}` after `${` in `${i`")]
    #[case("${c+1}", "expected numbers in `${c+1}`")]
    #[case("${repeat x}", "expected `${repeat TEXT N}`, found `${repeat x}`")]
    fn refuses(#[case] text: &str, #[case] message: &str) {
        assert_eq!(vars().replace(text).unwrap_err(), message);
    }
}
