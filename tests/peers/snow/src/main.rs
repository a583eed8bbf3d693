//! The crate snow as one end of a Noise handshake, for a test that is the other end.
//!
//!     snow-peer {initiator|responder} NAME PROLOGUE
//!
//! On stdin in hex, a line each: the PSK, then `s` and our static private key or `rs` and the peer's public one, then the
//! peer's handshake messages. On stdout ours, and at the end `hash` and the handshake hash. After that `seal` and a
//! plaintext, or `open` and a ciphertext, a line each, are answered with a line.
use std::env;
use std::error::Error;
use std::io::{stdin, Lines, StdinLock};

use snow::{Builder, HandshakeState};

fn next(lines: &mut Lines<StdinLock>) -> Result<String, Box<dyn Error>> {
    Ok(lines.next().ok_or("the end of stdin")??)
}

fn shake(
    mut state: HandshakeState,
    lines: &mut Lines<StdinLock>,
) -> Result<HandshakeState, Box<dyn Error>> {
    let mut buffer = [0; 1024];
    while !state.is_handshake_finished() {
        if state.is_my_turn() {
            let size = state.write_message(&[], &mut buffer)?;
            println!("{}", hex::encode(&buffer[..size]));
        } else {
            state.read_message(&hex::decode(next(lines)?)?, &mut buffer)?;
        }
    }
    Ok(state)
}

fn run() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = env::args().skip(1).collect();
    let [role, name, prologue] = words.as_slice() else {
        return Err("usage: snow-peer {initiator|responder} NAME PROLOGUE".into());
    };
    let mut lines = stdin().lines();
    let psk: [u8; 32] = hex::decode(next(&mut lines)?)?.as_slice().try_into()?;
    let prologue = hex::decode(prologue)?;
    let key = next(&mut lines)?;
    let (whose, key) = key.split_once(' ').ok_or("expected s or rs, and a key")?;
    let key = hex::decode(key)?;
    let mut builder = Builder::new(name.parse()?).prologue(&prologue)?.psk(0, &psk)?;
    builder = match whose {
        "s" => builder.local_private_key(&key)?,
        _ => builder.remote_public_key(&key)?,
    };
    let state = match role.as_str() {
        "initiator" => builder.build_initiator()?,
        _ => builder.build_responder()?,
    };
    let state = shake(state, &mut lines)?;
    println!("hash {}", hex::encode(state.get_handshake_hash()));
    let mut channel = state.into_transport_mode()?;
    let mut buffer = [0; 65535];
    for line in lines {
        let line = line?;
        let (what, message) = line.split_once(' ').ok_or("expected seal or open")?;
        let message = hex::decode(message)?;
        let size = match what {
            "seal" => channel.write_message(&message, &mut buffer)?,
            _ => channel.read_message(&message, &mut buffer)?,
        };
        println!("{}", hex::encode(&buffer[..size]));
    }
    Ok(())
}

fn main() {
    if let Err(why) = run() {
        println!("failed {why}");
        std::process::exit(1);
    }
}
