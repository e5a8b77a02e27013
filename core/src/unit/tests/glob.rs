use crate::unit::{Glob, GlobError};

#[test]
fn as_in_go() {
    // The cases that distinguish Go's path.Match from other dialects.
    let table = [
        ("abc", "abc", true),
        ("abc", "abcd", false),
        ("*", "abc", true),
        ("*", "", true),
        ("**", "abc", true),
        ("*c", "abc", true),
        ("a*", "a", true),
        ("a*", "ab/c", false),
        ("a*/b", "abc/b", true),
        ("a*/b", "a/c/b", false),
        ("a*b*c*d*e*/f", "axbxcxdxexxx/f", true),
        ("a*b*c*d*e*/f", "axbxcxdxe/xxx/f", false),
        ("a*b?c*x", "abxbbxdbxebxczzx", true),
        ("a*b?c*x", "abxbbxdbxebxczzy", false),
        ("*x", "xxx", true),
        ("ab[c]", "abc", true),
        ("ab[b-d]", "abc", true),
        ("ab[e-g]", "abc", false),
        ("ab[^c]", "abc", false),
        ("ab[^e-g]", "abc", true),
        ("[^^]", "^", false),
        ("[^^]", "a", true),
        ("[c-a]", "b", false),
        ("[a-cx-z]", "y", true),
        (r"a\*b", "a*b", true),
        (r"a\*b", "ab", false),
        ("a?b", "a☺b", true),
        ("a?b", "a/b", false),
        ("a[^a]b", "a☺b", true),
        ("a???b", "a☺b", false),
        ("[a-ζ]*", "α", true),
        ("*[a-ζ]", "A", false),
        (r"[\]a]", "]", true),
        (r"[\-]", "-", true),
        (r"[x\-]", "-", true),
        (r"[x\-]", "z", false),
        ("[[]", "[", true),
        // `!` and braces mean nothing special, unlike in a shell.
        ("[!a]", "!", true),
        ("[!a]", "a", true),
        ("[!a]", "b", false),
        ("{a,b}", "a", false),
        ("{a,b}", "{a,b}", true),
        // Case counts.
        ("Web.*", "web.service", false),
        ("web@*.service", "web@1.service", true),
        ("web@*.service", "web@.service", true),
        ("web@*.service", "xweb@1.service", false),
        (r"a\\x2db.service", r"a\x2db.service", true),
        (r"a\x2db.service", r"a\x2db.service", false),
    ];
    for (pattern, name, expected) in table {
        let glob = Glob::parse(pattern).unwrap();
        assert_eq!(glob.matches(name), expected, "{pattern} {name}");
    }
}

#[test]
fn bad_patterns() {
    for bad in ["[]a]", "[]", "[^]", "[-]", "[x-]", "[-x]", "[a-b-c]", "[a-]"] {
        assert_eq!(Glob::parse(bad), Err(GlobError::BadClass(bad.into())));
    }
    for bad in ["[", "[^", "[^bc", "a[", "a/b[", "[a-", r"[\", "[a"] {
        assert_eq!(Glob::parse(bad), Err(GlobError::UnclosedClass(bad.into())));
    }
    assert_eq!(Glob::parse("\\"), Err(GlobError::TrailingBackslash("\\".into())));
    assert_eq!(Glob::parse(""), Err(GlobError::Empty));
    assert_eq!(Glob::parse(&"a".repeat(1021)), Err(GlobError::TooLong));
}

#[test]
fn literals() {
    assert!(Glob::parse("web.service").unwrap().is_literal());
    for pattern in ["web@*.service", "web?.service", "[w]eb.service", r"w\eb.service"] {
        assert!(!Glob::parse(pattern).unwrap().is_literal(), "{pattern}");
    }
}

#[test]
fn many_stars_are_no_trap() {
    let glob = Glob::parse(&"*a".repeat(100)).unwrap();
    assert!(!glob.matches(&"a".repeat(99)));
    assert!(glob.matches(&"ab".repeat(99).repeat(2).replace("bb", "b").replace('b', "ba")));
}
