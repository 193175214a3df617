//go:build containers

package printed_test

// apps are what the printed Dockerfiles find in their folders: file names and
// their texts. Each answers "You have reached NAME".
var apps = map[string]map[string]string{
	"node": {"index.js": `require('http').createServer((q, a) => a.end('You have reached node\n')).listen(8000)`},
	"go": {
		"go.mod": "module app\n\ngo 1.26\n",
		"main.go": `package main

import (
	"io"
	"net/http"
)

func main() {
	_ = http.ListenAndServe("127.0.0.1:8000", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "You have reached go\n")
	}))
}
`,
	},
	"python": {
		"requirements.txt": "gunicorn\n",
		"app.py": `def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"You have reached python\n"]
`,
	},
	// A whole Rails app, as small as they get. Gems that the image has are taken from
	// there.
	"rails": {
		"Gemfile": `source "https://rubygems.org" if Gem::Specification.find_all_by_name("railties").empty?
gem "railties"
gem "puma"
`,
		"bin/rails": `#!/usr/bin/env ruby
APP_PATH = File.expand_path("../config/application", __dir__)
ENV["BUNDLE_GEMFILE"] ||= File.expand_path("../Gemfile", __dir__)
require "bundler/setup"
require "rails/commands"
`,
		"config/application.rb": `require "logger"
require "rails"
require "action_controller/railtie"

class Reached < ActionController::Base
  def index = render(plain: "You have reached rails\n")
end

class App < Rails::Application
  config.eager_load = false
  config.secret_key_base = "of a test"
  config.hosts.clear
  config.logger = Logger.new($stdout)
  routes.append { root to: "reached#index" }
end

ReachedController = Reached
`,
		"config/environment.rb": "require_relative \"application\"\nRails.application.initialize!\n",
		"config.ru":             "require_relative \"config/environment\"\nrun Rails.application\n",
	},
	"php": {"index.php": "<?php echo \"You have reached php\\n\";\n"},
	"java": {"Main.java": `import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;

public class Main {
    public static void main(String[] args) throws Exception {
        byte[] text = "You have reached java\n".getBytes();
        HttpServer server = HttpServer.create(new InetSocketAddress(8000), 0);
        server.createContext("/", exchange -> {
            exchange.sendResponseHeaders(200, text.length);
            exchange.getResponseBody().write(text);
            exchange.close();
        });
        server.start();
    }
}
`},
	"nginx": {"index.html": "You have reached nginx\n"},
}

// prepared are commands that a folder wants before it is what a Dockerfile expects,
// and the image they run in.
var prepared = map[string]struct{ image, command string }{
	"java": {"eclipse-temurin:21-jdk", "javac Main.java && jar cfe app.jar Main *.class"},
}
