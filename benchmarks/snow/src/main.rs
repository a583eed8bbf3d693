//! Handshakes of the crate `snow`, both roles, for benchmarks/core.py: reads a number from each line of stdin, makes so many
//! handshakes, and writes the seconds that they took.

use snow::{Builder, Error};
use std::io::{stdin, BufRead};
use std::time::Instant;

const PATTERN: &str = "Noise_KNpsk0_P256_AESGCM_SHA256";

fn handshake(psk: &[u8; 32], private: &[u8], public: &[u8]) -> Result<(), Error> {
    let (mut message, mut payload) = ([0u8; 256], [0u8; 256]);
    let mut initiator = Builder::new(PATTERN.parse()?).psk(0, psk)?.local_private_key(private)?.build_initiator()?;
    let mut responder = Builder::new(PATTERN.parse()?).psk(0, psk)?.remote_public_key(public)?.build_responder()?;
    let size = initiator.write_message(&[], &mut message)?;
    responder.read_message(&message[..size], &mut payload)?;
    let size = responder.write_message(&[], &mut message)?;
    initiator.read_message(&message[..size], &mut payload)?;
    initiator.into_transport_mode()?;
    responder.into_transport_mode()?;
    Ok(())
}

fn main() -> Result<(), Error> {
    let keys = Builder::new(PATTERN.parse()?).generate_keypair()?;
    let psk = [7u8; 32];
    for line in stdin().lock().lines().map_while(Result::ok) {
        let number: u32 = line.trim().parse().expect("a number of handshakes");
        let began = Instant::now();
        for _ in 0..number {
            handshake(&psk, &keys.private, &keys.public)?;
        }
        println!("{}", began.elapsed().as_secs_f64());
    }
    Ok(())
}
