//! Sets of things that scenario files and reports call by a name.

/// Declares an enum whose variants have a name and a sentence about them: `ALL`, `name`, `about`, `Display`, and `FromStr`, whose
/// error says what kind of thing is not known.
macro_rules! named {
    (
        $(#[$meta:meta])*
        $set:ident, $kind:literal {
            $( $(#[doc = $about:literal])* $variant:ident = $name:literal; )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $set { $( $(#[doc = $about])* $variant, )* }

        impl $set {
            #[doc = concat!("Every ", $kind, ".")]
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name used in scenario files and reports.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// One sentence on what it means.
            pub fn about(self) -> &'static str {
                match self { $(Self::$variant => concat!($($about),*).trim_ascii()),* }
            }
        }

        impl std::fmt::Display for $set {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }

        impl std::str::FromStr for $set {
            type Err = String;
            fn from_str(s: &str) -> Result<Self, String> {
                let found = Self::ALL.iter().copied().find(|x| x.name() == s);
                found.ok_or_else(|| format!(concat!("unknown ", $kind, " `{}`"), s))
            }
        }
    };
}

pub(crate) use named;
