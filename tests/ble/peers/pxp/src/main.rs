//! The crate pxp as a client platform, one ceremony after the other, for a test that speaks CTAP through it.
//!
//!     pxp-client {tunnel|any} {ga|mc} {once|link}
//!
//! `tunnel` offers the WebSocket tunnel alone, `any` the direct BLE channel beside it (key 6). `link` asks for a link
//! (key 4), and uses it for each further ceremony, a sign-in. On stdin a line for each command in hex, and an empty line that ends the
//! ceremony; on stdout what happens, a word and a value a line:
//!
//!     url FIDO:/…    connected    reply HEX    link NAME DOMAIN    closed    failed WHY
use std::env;
use std::sync::Arc;
use std::time::Duration;

use pxp::known_devices::{
    ClientPayloadHint, EphemeralDeviceInfoStore, PxpKnownDevice, PxpKnownDeviceInfo,
};
use pxp::qr_code_device::{PxpQrCodeDevice, PxpTransports, QrCodeOperationHint};
use pxp::{connect, ConnectTarget, PxpUpdate, UpdateSink};
use tokio::io::{AsyncBufReadExt, BufReader, Lines, Stdin};
use tokio::time::{sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(300);

struct Updates;

impl UpdateSink for Updates {
    fn send_update(&self, update: PxpUpdate) {
        if let PxpUpdate::Error(error) = update {
            println!("failed {error}");
        }
    }
}

async fn ceremony(target: ConnectTarget, lines: &mut Lines<BufReader<Stdin>>) -> Result<(), String> {
    let mut handle = connect(target, Updates);
    timeout(PATIENCE, handle.wait_for_connection())
        .await
        .map_err(|_| "no phone".to_string())?
        .map_err(|error| error.to_string())?;
    println!("connected");
    while let Some(line) = lines.next_line().await.map_err(|error| error.to_string())? {
        if line.is_empty() {
            break;
        }
        let command = hex::decode(line).map_err(|error| error.to_string())?;
        handle.ctap_sender.send(command).await.map_err(|error| error.to_string())?;
        let reply = timeout(PATIENCE, handle.ctap_receiver.recv())
            .await
            .map_err(|_| "no reply".to_string())?
            .ok_or("the phone has gone".to_string())?;
        println!("reply {}", hex::encode(reply));
    }
    handle.close().await;
    println!("closed");
    Ok(())
}

async fn link(store: &EphemeralDeviceInfoStore) -> Option<PxpKnownDeviceInfo> {
    for _ in 0..50 {
        if let Some((_, info)) = store.list_all().await.into_iter().next() {
            return Some(info);
        }
        sleep(Duration::from_millis(100)).await;
    }
    None
}

async fn run() -> Result<(), String> {
    let words: Vec<String> = env::args().skip(1).collect();
    let [channels, kind, linking] = words.as_slice() else {
        return Err("usage: pxp-client {tunnel|any} {ga|mc} {once|link}".into());
    };
    let transports = match channels.as_str() {
        "any" => PxpTransports::CloudAssistedOrLocal,
        _ => PxpTransports::CloudAssistedOnly,
    };
    let hint = match kind.as_str() {
        "mc" => QrCodeOperationHint::MakeCredential,
        _ => QrCodeOperationHint::GetAssertionRequest,
    };
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let store = Arc::new(EphemeralDeviceInfoStore::new());
    let scanned = match linking.as_str() {
        "link" => PxpQrCodeDevice::new_persistent(hint, store.clone(), transports),
        _ => PxpQrCodeDevice::new_transient(hint, transports),
    }
    .map_err(|error| error.to_string())?;
    println!("url {}", scanned.qr_code);
    ceremony(scanned.into(), &mut lines).await?;
    if linking == "link" {
        let info = link(&store).await.ok_or("no link came")?;
        println!("link {} {}", info.name, info.tunnel_domain);
        while lines.next_line().await.map_err(|error| error.to_string())?.is_some() {
            let known = PxpKnownDevice::new(ClientPayloadHint::GetAssertion, &info, store.clone())
                .await
                .map_err(|error| error.to_string())?;
            ceremony(known.into(), &mut lines).await?;
            println!("links {}", store.list_all().await.len());
        }
    }
    Ok(())
}

#[tokio::main]
async fn main() {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    if let Err(why) = run().await {
        println!("failed {why}");
        std::process::exit(1);
    }
}
