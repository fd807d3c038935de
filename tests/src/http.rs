//! The least HTTP that reads an admin page.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::wait::{PATIENCE, within};

/// What a page answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Header lines, as they came.
    pub head: String,
    /// Body.
    pub body: String,
}

/// One request. HTTP/1.0, so that the answer ends with the connection and is never chunked.
pub(crate) async fn request(address: SocketAddr, method: &str, path: &str, body: &str) -> io::Result<Answer> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await?;
        Ok::<_, io::Error>(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = within(PATIENCE, &format!("{method} {path}"), exchange).await?;
    parse(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not an HTTP answer"))
}

fn parse(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, head: head.to_owned(), body: body.to_owned() })
}

/// A metrics page in Prometheus' text format.
#[derive(Debug, Clone)]
pub struct Metrics(pub String);

impl Metrics {
    /// Sum of the samples of this name that carry all of these labels; none when there is no such sample.
    pub fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let wanted: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
        let samples = self.0.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (found, rest) = series.split_once('{').unwrap_or((series, ""));
            let labels: Vec<&str> = rest.trim_end_matches('}').split("\",").map(str::trim).collect();
            let carries = |pair: &String| {
                labels.iter().any(|label| label.trim_end_matches('"') == pair.trim_end_matches('"'))
            };
            (found == name && wanted.iter().all(carries)).then(|| value.parse::<f64>().ok())?
        });
        samples.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_one_name_are_summed_over_the_other_labels() {
        // Names that only begin alike, and labels that only end alike, must not count.
        let page = "# TYPE a counter\na{lane=\"read\",w=\"0\"} 1\na{lane=\"read\",w=\"1\"} 2\n\
                    a{lane=\"write\",w=\"1\"} 4\na_total 8\n";
        let metrics = Metrics(page.to_owned());

        assert_eq!(metrics.get("a", &[("lane", "read")]), Some(3.0));
        assert_eq!(metrics.get("a", &[]), Some(7.0));
        assert_eq!(metrics.get("a_total", &[]), Some(8.0));
        assert_eq!(metrics.get("b", &[]), None);
        assert_eq!(metrics.get("a", &[("ane", "read")]), None);
    }
}
