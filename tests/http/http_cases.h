#pragma once

#include <string>
#include <utility>
#include <vector>

namespace quicksilver::http {

struct HttpCase {
  std::string name;
  std::string bytes;
  int status = 200;  ///< 0: more bytes are needed.
  std::string body;  ///< Of the request, when it is accepted.
};

/// Requests to POST /echo that are served, do not fit, or are not whole yet.
inline std::vector<HttpCase> PlainCases() {
  const std::string post = "POST /echo HTTP/1.1\r\nHost: a\r\n";
  const auto with = [&](const std::string& headers, const std::string& rest) { return post + headers + "\r\n" + rest; };
  const std::string chunked = "Transfer-Encoding: chunked\r\n";
  std::string hundred, hundred_and_one = "X-0: 0\r\n";
  for (int i = 0; i < 99; ++i) hundred += "X-" + std::to_string(i) + ": 1\r\n";
  hundred_and_one += hundred;
  return {
      {"Length", with("Content-Length: 3\r\n", "abc"), 200, "abc"},
      {"NoBody", with("", ""), 200, ""},
      {"Chunks", with(chunked, "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"), 200, "abcde"},
      {"NoChunks", with(chunked, "0\r\n\r\n"), 200, ""},
      {"ChunkedInAnyCase", with("transfer-encoding: Chunked\r\n", "1\r\na\r\n0\r\n\r\n"), 200, "a"},
      {"ChunkExtensionsAreIgnored", with(chunked, "3;a=b;c=\"d\"\r\nabc\r\n0;x\r\n\r\n"), 200, "abc"},
      {"TrailersAreDropped", with(chunked, "1\r\na\r\n0\r\nX-Late: 1\r\n\r\n"), 200, "a"},
      {"AbsoluteFormOfTheSameHost", "POST http://A/echo HTTP/1.1\r\nHost: a\r\n\r\n", 200, ""},
      {"ALeadingEmptyLine", "\r\n" + with("", ""), 200, ""},
      {"TwoLeadingEmptyLines", "\r\n\r\n" + with("", ""), 400},
      {"AQuery", "POST /echo?x=%zz HTTP/1.1\r\nHost: a\r\n\r\n", 200, ""},
      {"Http10WithoutHost", "POST /echo HTTP/1.0\r\nContent-Length: 1\r\n\r\na", 200, "a"},
      {"OneHundredHeaders", with(hundred, ""), 200, ""},
      {"OneHundredAndOneHeaders", with(hundred_and_one, ""), 431},
      {"HeadersOver16KiB", with("X: " + std::string(16 * 1024, 'a') + "\r\n", ""), 431},
      {"OneHeaderWithoutEnd", post + "X: " + std::string(17 * 1024, 'a'), 431},
      {"ALongTarget", "GET /" + std::string(17 * 1024, 'a') + " HTTP/1.1\r\nHost: a\r\n\r\n", 431},
      {"ManyHeaders", post + std::string(100'000, 'a'), 431},
      {"HalfAHead", "POST /echo HTT", 0},
      {"HalfABody", with("Content-Length: 3\r\n", "ab"), 0},
      {"HalfAChunk", with(chunked, "3\r\na"), 0},
  };
}

/// Requests to POST /echo whose end two servers could see in different places.
inline std::vector<HttpCase> HostileCases() {
  const std::string post = "POST /echo HTTP/1.1\r\nHost: a\r\n";
  const auto with = [&](const std::string& headers, const std::string& rest) { return post + headers + "\r\n" + rest; };
  const std::string chunked = "Transfer-Encoding: chunked\r\n";
  return {
      {"EncodingIdentity", with("Transfer-Encoding: identity\r\n", ""), 400},
      {"EncodingXchunked", with("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"), 400},
      {"EncodingChunkedIdentity", with("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"), 400},
      {"EncodingGzipChunked", with("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"), 400},
      {"EncodingTwice", with(chunked + chunked, "0\r\n\r\n"), 400},
      {"EncodingEmpty", with("Transfer-Encoding:\r\n", ""), 400},
      {"EncodingInHttp10", "POST /echo HTTP/1.0\r\n" + chunked + "\r\n0\r\n\r\n", 400},
      {"LengthAndEncoding", with("Content-Length: 5\r\n" + chunked, "0\r\n\r\n"), 400},
      {"EncodingAndLength", with(chunked + "Content-Length: 5\r\n", "0\r\n\r\n"), 400},
      {"LengthsThatDiffer", with("Content-Length: 3\r\nContent-Length: 4\r\n", "abcd"), 400},
      {"LengthTwice", with("Content-Length: 3\r\nContent-Length: 3\r\n", "abc"), 400},
      {"LengthList", with("Content-Length: 3, 3\r\n", "abc"), 400},
      {"LengthWithSign", with("Content-Length: +3\r\n", "abc"), 400},
      {"LengthNegative", with("Content-Length: -3\r\n", "abc"), 400},
      {"LengthHex", with("Content-Length: 0x3\r\n", "abc"), 400},
      {"LengthOverflow", with("Content-Length: 18446744073709551617\r\n", "a"), 400},
      {"LengthOverTheLimit", with("Content-Length: 8388609\r\n", ""), 413},
      {"HostMissing", "POST /echo HTTP/1.1\r\n\r\n", 400},
      {"HostTwice", with("Host: a\r\n", ""), 400},
      {"HostTwiceDiffering", with("Host: b\r\n", ""), 400},
      {"FoldedHeader", with("X: a\r\n b\r\n", ""), 400},
      {"FoldedWithTab", with("X: a\r\n\tb\r\n", ""), 400},
      {"FoldedFirstHeader", "POST /echo HTTP/1.1\r\n Host: a\r\n\r\n", 400},
      {"SpaceBeforeTheColon", with("X : a\r\n", ""), 400},
      {"BareLineFeed", "POST /echo HTTP/1.1\nHost: a\n\n", 400},
      {"BareCarriageReturn", with("X: a\rb\r\n", ""), 400},
      {"NulInAHeader", with("X: a" + std::string(1, '\0') + "b\r\n", ""), 400},
      {"AbsoluteFormOfAnotherHost", "POST http://b/echo HTTP/1.1\r\nHost: a\r\n\r\n", 400},
      {"AuthorityForm", "CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 400},
      {"TargetWithoutSlash", "POST echo HTTP/1.1\r\nHost: a\r\n\r\n", 400},
      {"BadPercentEscape", "POST /echo%2 HTTP/1.1\r\nHost: a\r\n\r\n", 400},
      {"EscapedNul", "POST /echo%00 HTTP/1.1\r\nHost: a\r\n\r\n", 400},
      {"Http2Preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505},
      {"Http09", "GET /echo\r\n\r\n", 400},
      {"Garbage", "\x16\x03\x01\x02\x05\x01\r\n\r\n", 400},
      {"ChunkSizeOverflow", with(chunked, "ffffffffffffffffff\r\na"), 400},
      {"ChunkSizeHexPrefix", with(chunked, "0x1\r\na\r\n0\r\n\r\n"), 400},
      {"ChunkSizeNegative", with(chunked, "-1\r\na\r\n"), 400},
      {"ChunkWithoutEnd", with(chunked, "1\r\nab\r\n0\r\n\r\n"), 400},
      {"ExtensionWithoutEnd", with(chunked, "1;" + std::string(20 * 1024, 'a')), 400},
      {"OtherExpectation", with("Expect: 200-ok\r\nContent-Length: 1\r\n", "a"), 417},
  };
}

inline std::vector<HttpCase> HttpCases() {
  std::vector<HttpCase> cases = PlainCases();
  for (HttpCase& hostile : HostileCases()) cases.push_back(std::move(hostile));
  return cases;
}

}  // namespace quicksilver::http
