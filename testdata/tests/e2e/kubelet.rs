//! A kubelet that forwards ports, and does nothing else: what an API server connects to, by TLS and WebSocket
//! (`v4.channel.k8s.io`: a byte before each message says of which port it is, data or error).

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex},
};

use futures::{SinkExt, StreamExt};
use rcgen::generate_simple_self_signed;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, pki_types::PrivateKeyDer},
    server::TlsStream,
};
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async,
    tungstenite::{
        Message,
        handshake::server::{Request, Response},
        http::HeaderValue,
    },
};

/// Addresses by pod's name.
type Pods = Arc<Mutex<BTreeMap<String, String>>>;

/// A kubelet of all nodes; it ends when it is dropped.
pub(crate) struct Kubelet {
    pub(crate) port: u16,
    pods: Pods,
    _runtime: Runtime,
}

impl Kubelet {
    pub(crate) fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let made = generate_simple_self_signed(vec!["localhost".into()]).expect("a certificate");
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key);
        let acceptor = TlsAcceptor::from(Arc::new(config.expect("a configuration")));
        let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0))).expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let pods = Pods::default();
        let of = Arc::clone(&pods);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, pods) = (acceptor.clone(), Arc::clone(&of));
                tokio::spawn(async move {
                    let stream = acceptor.accept(stream).await?;
                    serve(stream, &pods).await
                });
            }
        });
        Self { port, pods, _runtime: runtime }
    }

    /// From now on, a pod's ports are those of this address.
    pub(crate) fn forward(&self, pod: &str, address: &str) {
        self.pods.lock().expect("no thread panicked").insert(pod.into(), address.into());
    }
}

async fn serve(stream: TlsStream<TcpStream>, pods: &Pods) -> io::Result<()> {
    let mut path = String::new();
    #[expect(clippy::result_large_err, reason = "the library's own type")]
    let read_path = |request: &Request, mut response: Response| {
        path = request.uri().to_string();
        response.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static("v4.channel.k8s.io"));
        Ok(response)
    };
    let mut socket = accept_hdr_async(stream, read_path).await.map_err(io::Error::other)?;
    // /portForward/NAMESPACE/POD?port=PORT
    let (place, query) = path.split_once('?').unwrap_or((&path, ""));
    let port = query.split('&').find_map(|pair| pair.strip_prefix("port=")).and_then(|port| port.parse::<u16>().ok());
    let [low, high] = port.unwrap_or_default().to_le_bytes();
    for channel in [DATA, ERROR] {
        send(&mut socket, &[channel, low, high]).await?;
    }
    let address = pods.lock().expect("no thread panicked").get(place.rsplit('/').next().unwrap_or_default()).cloned();
    let reached = TcpStream::connect(address.unwrap_or_default()).await;
    let Ok(mut pod) = reached else {
        let refused = b"\x01failed to connect to localhost inside namespace: connection refused";
        send(&mut socket, refused).await?;
        return socket.close(None).await.map_err(io::Error::other);
    };
    let mut buffer = vec![0; 32 << 10];
    buffer[0] = DATA;
    loop {
        tokio::select! {
            read = pod.read(&mut buffer[1..]) => match read? {
                0 => return socket.close(None).await.map_err(io::Error::other),
                bytes => send(&mut socket, &buffer[..=bytes]).await?,
            },
            message = socket.next() => match message {
                Some(Ok(Message::Binary(bytes))) if bytes.first() == Some(&DATA) => pod.write_all(&bytes[1..]).await?,
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Ok(()),
            },
        }
    }
}

async fn send(socket: &mut WebSocketStream<TlsStream<TcpStream>>, bytes: &[u8]) -> io::Result<()> {
    socket.send(Message::Binary(bytes.to_vec().into())).await.map_err(io::Error::other)
}

const DATA: u8 = 0;
const ERROR: u8 = 1;
