#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace quicksilver {

struct TemplateMessage {
  std::string role;
  std::string content;
  std::string name;  ///< Empty: absent.
};

/// The text side of one model: tokenizer.json, tokenizer_config.json, chat_template.jinja, and the control ids that
/// config.json names. A token is special when any of them says so. Post-processors are not run: no token is ever added
/// to a text. Immutable, thread-safe.
class TextModel {
 public:
  /// NotFound / InvalidArgument, one line naming file and reason.
  static absl::StatusOr<std::shared_ptr<const TextModel>> Load(const std::string& directory);
  virtual ~TextModel() = default;

  /// Ids of plain text: no id of a special token can come out, whatever the text says. `text` is valid UTF-8.
  /// ResourceExhausted: more than `ids_max` ids (stops early; time is bounded by that, not by the text).
  virtual absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text, size_t ids_max) const = 0;

  /// Renders the chat template and encodes it: the template's own special tokens become ids, contents stay plain text.
  /// InvalidArgument: the template raised or has no meaning for these messages; ResourceExhausted as above.
  virtual absl::StatusOr<std::vector<int32_t>> EncodeChat(const std::vector<TemplateMessage>& messages,
                                                          size_t ids_max) const = 0;

  /// The bytes of one id: "" for special tokens and unknown ids. A token may be part of a UTF-8 character.
  virtual std::string_view TokenBytes(int32_t id) const = 0;
  virtual bool IsSpecial(int32_t id) const = 0;
  virtual int32_t size() const = 0;                               ///< Largest id + 1.
  virtual int32_t FindSpecial(std::string_view token) const = 0;  ///< -1 when there is none.
  virtual const std::string& digest() const = 0;                  ///< Hex SHA-256 of tokenizer.json.
};

/// Turns a growing sequence of final ids into text, never splitting a UTF-8 character: bytes that may still become one
/// are held back, bytes that cannot become U+FFFD (as Python's errors="replace" does).
class Detokenizer {
 public:
  explicit Detokenizer(const TextModel& text) : text_(&text) {}
  std::string Push(int32_t id);
  std::string Finish();  ///< What is held back, replaced by U+FFFD.
  bool holds_back() const { return !held_.empty(); }

 private:
  const TextModel* text_;  // Outlives this.
  std::string held_;
};

/// Finds stop strings in streamed text (serving.md §1.5, §10): the match that starts first wins, then the longest. Text
/// that may still become a match is held back.
class StopMatcher {
 public:
  explicit StopMatcher(std::vector<std::string> stops);  ///< Empty stops are ignored.
  struct Output {
    std::string text;      ///< May be sent.
    bool stopped = false;  ///< A stop string was found; nothing more comes.
  };
  Output Push(std::string_view text);
  Output Finish();  ///< The text ended: releases what is held back.

 private:
  struct Stop {
    std::string text;
    std::vector<size_t> failure;
    size_t matched = 0;  // Bytes of `text` that end at the current position.
  };
  static constexpr size_t kNone = static_cast<size_t>(-1);

  void Advance(Stop& stop, char byte);
  size_t PendingStart() const;
  Output Stopped();

  std::vector<Stop> stops_;
  std::string held_;
  size_t match_ = kNone;  // Where in held_ the best match found so far starts.
  bool stopped_ = false;
};

}  // namespace quicksilver
