// Reads the text of PTX modules: kernels, their variables, statements and operands.
#pragma once

#include <cctype>
#include <memory>

#include "ptx_machine.h"

namespace ptx {

using Words = std::vector<std::string>;

inline std::string trimmed(const std::string& text) {
  const size_t first = text.find_first_not_of(" \t\r\n"), last = text.find_last_not_of(" \t\r\n");
  return first == std::string::npos ? "" : text.substr(first, last - first + 1);
}

/// Splits at a character outside of brackets.
inline Words split(const std::string& text, char at) {
  Words parts(1);
  int depth = 0;
  for (char c : text) {
    depth += (c == '{' || c == '[') - (c == '}' || c == ']');
    if (c == at && depth == 0) {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  for (std::string& part : parts) part = trimmed(part);
  return parts;
}

inline bool has(const Words& words, const std::string& word) {
  for (const std::string& one : words) {
    if (one == word) return true;
  }
  return false;
}

/// A statement: `@!%p1 mul.wide.s32 %rd1, %r1, 4`.
struct Statement {
  std::string guard;  ///< "%p1"; empty: none
  bool negated = false;
  Words opcode, operands;  ///< {"mul", "wide", "s32"}, {"%rd1", "%r1", "4"}
};

inline Statement statement_of(std::string text) {
  Statement out;
  if (text[0] == '@') {
    const size_t end = text.find_first_of(" \t");
    out.negated = text[1] == '!';
    out.guard = text.substr(out.negated ? 2 : 1, end - (out.negated ? 2 : 1));
    text = trimmed(text.substr(end));
  }
  const size_t end = text.find_first_of(" \t");
  out.opcode = split(text.substr(0, end), '.');
  if (end != std::string::npos) out.operands = split(text.substr(end), ',');
  return out;
}

/// A number as PTX writes it; floats are their bits in hexadecimal digits.
inline uint64_t literal(const std::string& text) {
  const std::string start = text.substr(0, 2);
  if (start == "0f" || start == "0d") return std::stoull(text.substr(2), nullptr, 16);
  if (text[0] == '-') return static_cast<uint64_t>(std::stoll(text, nullptr, 0));
  return std::stoull(text, nullptr, 0);
}

/// The row of a register, a literal or the address of a variable.
inline int row_of(Kernel& kernel, const std::string& name) {
  if (const auto found = kernel.rows.find(name); found != kernel.rows.end()) return found->second;
  const int row = static_cast<int>(kernel.rows.size());
  kernel.rows[name] = row;
  if (name[0] == '%') {
    if (name.find('.') != std::string::npos) kernel.specials.emplace_back(name, row);
  } else if (std::isdigit(name[0]) || name[0] == '-') {
    kernel.constants.emplace_back(row, literal(name));
  } else if (const auto found = kernel.symbols.find(name); found != kernel.symbols.end()) {
    kernel.constants.emplace_back(row, found->second);
  } else {
    unsupported("the operand " + name);
  }
  return row;
}

/// The rows of `{%r1, %r2}`, or of one register.
inline std::vector<int> rows_of(Kernel& kernel, const std::string& text) {
  std::vector<int> rows;
  const bool braces = text[0] == '{';
  for (const std::string& name : split(braces ? text.substr(1, text.size() - 2) : text, ',')) {
    rows.push_back(row_of(kernel, name));
  }
  return rows;
}

/// `[%rd1+8]`: the row of the base, and the sum of the offsets.
inline std::pair<int, int64_t> address_of(Kernel& kernel, const std::string& text) {
  const Words parts = split(text.substr(1, text.size() - 2), '+');
  int64_t offset = 0;
  for (size_t i = 1; i < parts.size(); ++i) offset += static_cast<int64_t>(literal(parts[i]));
  return {row_of(kernel, parts[0]), offset};
}

/// `.shared .align 4 .b8 name[32]`, or a parameter.
struct Variable {
  std::string name;
  uint32_t align = 1, bytes = 0;
};

inline Variable variable_of(const std::string& text) {
  Variable out;
  const Words words = split(text, ' ');
  uint32_t item = 1;
  for (size_t i = 0; i + 1 < words.size(); ++i) {
    if (words[i] == ".align") {
      out.align = std::stoul(words[i + 1]);
    } else if (words[i].size() > 2 && std::isdigit(words[i][2])) {  // ".b8", not ".ptr"
      item = bytes_of(words[i].substr(1));
    }
  }
  const std::string& last = words.back();
  const size_t bracket = last.find('[');
  out.name = last.substr(0, bracket);
  const bool sized = bracket != std::string::npos && last[bracket + 1] != ']';
  out.bytes = item * (sized ? std::stoul(last.substr(bracket + 1)) : 1);
  out.align = std::max(out.align, item);
  return out;
}

/// Places a variable behind those before it; returns its offset.
inline uint32_t place(Kernel& kernel, const Variable& variable, uint32_t& bytes) {
  const uint32_t offset = (bytes + variable.align - 1) / variable.align * variable.align;
  bytes = offset + variable.bytes;
  kernel.symbols[variable.name] = offset;
  return offset;
}

/// Statements of a body in order, with labels as `name:`.
inline Words statements_of(const std::string& body) {
  Words out;
  std::string now;
  for (char c : body) {
    const bool label = c == ':' && now.find_first_of(" \t{:") == std::string::npos;
    if (c == ';' || label) {
      out.push_back(trimmed(now) + (label ? ":" : ""));
      now.clear();
    } else if (!now.empty() || !std::isspace(static_cast<unsigned char>(c))) {
      now += c;
    }
  }
  return out;
}

/// The kernels of a module, not yet read beyond their parameters.
inline std::vector<std::shared_ptr<Kernel>> kernels_of(const std::string& module) {
  std::vector<std::shared_ptr<Kernel>> out;
  std::string dynamic_name;
  if (const size_t at = module.find(".extern .shared"); at != std::string::npos) {
    dynamic_name = variable_of(module.substr(at, module.find(';', at) - at)).name;
  }
  for (size_t at = 0; (at = module.find(".entry", at)) != std::string::npos; ++at) {
    auto kernel = std::make_shared<Kernel>();
    kernel->dynamic_name = dynamic_name;
    const size_t open = module.find('(', at), close = module.find(')', open);
    const size_t body = module.find('{', close), end = module.find("\n}", body);
    kernel->name = trimmed(module.substr(at + 6, open - at - 6));
    kernel->source = module.substr(body + 1, end - body - 1);
    for (const std::string& text : split(module.substr(open + 1, close - open - 1), ',')) {
      if (text.empty()) continue;
      const Variable one = variable_of(text);
      kernel->parameters.push_back({place(*kernel, one, kernel->parameter_bytes), one.bytes});
    }
    const std::string directives = module.substr(close, body - close);
    if (const size_t limit = directives.find(".maxntid"); limit != std::string::npos) {
      kernel->max_threads = std::stoul(directives.substr(limit + 8));
    }
    out.push_back(kernel);
  }
  return out;
}

}  // namespace ptx
