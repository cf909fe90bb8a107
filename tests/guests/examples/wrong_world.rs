//! A component of another world.

wit_bindgen::generate!({
    inline: "package acme:other@1.0.0; world other { export greet: func() -> string; }",
});

struct Other;

impl Guest for Other {
    fn greet() -> String {
        "hello".to_owned()
    }
}

export!(Other);
