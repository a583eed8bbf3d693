//! The crate libwebauthn as a client platform, one ceremony after the other, for a test that is the relying party.
//!
//!     libwebauthn-client {ga|mc} {once|link}
//!
//! It shows a FIDO URL for the first ceremony, which makes a passkey (`mc`) or uses one (`ga`). `link` asks for a link
//! (key 4), and uses it for each further ceremony, a sign-in. On stdin a line for each ceremony, the relying party's
//! options in JSON; on stdout what happens, a word and a value a line:
//!
//!     url FIDO:/…    credential JSON    link NAME DOMAIN    links N    failed WHY
use std::env;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use libwebauthn::ops::webauthn::{
    GetAssertionRequest, JsonFormat, MakeCredentialRequest, OriginValidation, PublicSuffixList, RelatedOrigins,
    RequestOrigin, RequestSettings, WebAuthnIDLResponse,
};
use libwebauthn::transport::hybrid::channel::HybridChannel;
use libwebauthn::transport::hybrid::known_devices::{
    ClientPayloadHint, EphemeralDeviceInfoStore, PxpKnownDevice, PxpKnownDeviceInfo,
};
use libwebauthn::transport::hybrid::qr_code_device::{PxpQrCodeDevice, PxpTransports, QrCodeOperationHint};
use libwebauthn::transport::{Channel, ChannelSettings, Device};
use libwebauthn::webauthn::WebAuthn;
use tokio::io::{AsyncBufReadExt, BufReader, Lines, Stdin};
use tokio::time::sleep;

const ORIGIN: &str = "https://login.example";

/// Every top-level domain is a public suffix, and nothing else is.
struct TopLevelDomains;

impl PublicSuffixList for TopLevelDomains {
    fn public_suffix(&self, host: &str) -> Option<String> {
        host.rsplit('.').next().map(str::to_string)
    }
}

#[derive(Clone, Copy)]
enum Kind {
    MakeCredential,
    GetAssertion,
}

async fn ceremony(mut channel: HybridChannel, kind: Kind, options: &str) -> Result<(), Box<dyn Error>> {
    let origin = RequestOrigin::try_from(ORIGIN)?;
    let settings = RequestSettings {
        origin: OriginValidation::Validate {
            public_suffix_list: &TopLevelDomains,
            related_origins: RelatedOrigins::Disabled,
        },
    };
    let credential = match kind {
        Kind::MakeCredential => {
            let request = MakeCredentialRequest::prepare(&origin, options, &settings).await?;
            let made = channel.webauthn_make_credential(&request).await?;
            made.to_json_string(&request, JsonFormat::Minified)?
        }
        Kind::GetAssertion => {
            let request = GetAssertionRequest::prepare(&origin, options, &settings).await?;
            let used = channel.webauthn_get_assertion(&request).await?;
            let [assertion] = used.assertions.as_slice() else {
                return Err(format!("{} assertions", used.assertions.len()).into());
            };
            assertion.to_json_string(&request, JsonFormat::Minified)?
        }
    };
    channel.close().await;
    println!("credential {credential}");
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

async fn run(lines: &mut Lines<BufReader<Stdin>>) -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (kind, hint, linking) = match words.as_slice() {
        ["mc", linking @ ("once" | "link")] => (Kind::MakeCredential, QrCodeOperationHint::MakeCredential, *linking),
        ["ga", linking @ ("once" | "link")] => (Kind::GetAssertion, QrCodeOperationHint::GetAssertionRequest, *linking),
        _ => return Err("usage: libwebauthn-client {ga|mc} {once|link}".into()),
    };
    let store = Arc::new(EphemeralDeviceInfoStore::new());
    let transports = PxpTransports::CloudAssistedOnly;
    let mut scanned = match linking {
        "link" => PxpQrCodeDevice::new_persistent(hint, store.clone(), transports)?,
        _ => PxpQrCodeDevice::new_transient(hint, transports)?,
    };
    println!("url {}", scanned.qr_code);
    let options = lines.next_line().await?.ok_or("no options came")?;
    ceremony(scanned.channel(ChannelSettings::default()).await?, kind, &options).await?;
    if linking == "link" {
        let info = link(&store).await.ok_or("no link came")?;
        println!("link {} {}", info.name, info.tunnel_domain);
        while let Some(options) = lines.next_line().await? {
            let mut known = PxpKnownDevice::new(ClientPayloadHint::GetAssertion, &info, store.clone()).await?;
            ceremony(known.channel(ChannelSettings::default()).await?, Kind::GetAssertion, &options).await?;
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
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    if let Err(why) = run(&mut lines).await {
        println!("failed {why}");
        std::process::exit(1);
    }
}
